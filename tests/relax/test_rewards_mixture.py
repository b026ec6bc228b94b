"""Several functions with weights, and what a run is told when one of them fails."""

import functools
import multiprocessing
import pickle
import subprocess
import sys
import time
import warnings

import pytest
import reward_functions

from relax.errors import TrainingStopped, UserError
from relax.rewards import RewardFailed, Sample, build_rewards
from relax.tasks import TASKS


def test_the_total_is_the_weighted_sum_of_those_that_apply() -> None:
    def long(completion: str) -> float | None:
        return None if completion == "7" else float(len(completion))

    samples = [Sample("p", "7", {"answer": "7"}), Sample("p", "77", {"answer": "7"}), Sample("p", "777", {})]
    scores = build_rewards([("exact", 2.0), (long, -0.5)]).score(samples)
    assert scores.by_function == {"exact": [1.0, 0.0, None], "long": [None, 2.0, 3.0]}
    assert scores.total == [2.0, -1.0, -1.5]
    assert scores.means() == {"exact": 0.5, "long": 2.5}
    assert scores.num_faults == {"exact": 0, "long": 0}


def test_the_built_in_task_is_a_reward_function() -> None:
    task = TASKS["sorting"]
    samples = [Sample("312>", "123", {}), Sample("312>", "132", {})]
    assert build_rewards(task.grade).score(samples).total == [1.0, 0.0]


def test_a_batched_function_sees_only_the_rows_that_it_applies_to() -> None:
    seen: list[str] = []

    def reward(completions: list[str], answer: list[str]) -> list[float]:
        seen.extend(completions)
        return [1.0] * len(completions)

    samples = [Sample("p", "a", {"answer": "x"}), Sample("p", "b", {"answer": None}), Sample("p", "c", {"answer": "x"})]
    assert build_rewards([reward, "reward_functions.length"]).score(samples).total == [2, 1, 2]
    assert seen == ["a", "c"]


def test_rows_that_nothing_applies_to_stop_the_run() -> None:
    with pytest.raises(
        RewardFailed, match=r"no reward function applies .*needed are answer, the row has question\); prompt 'p'"
    ):
        build_rewards("exact").score([Sample("p", "c", {"question": "q"})])


def test_missing_columns_are_refused_before_the_run() -> None:
    rewards = build_rewards("exact")
    rewards.check_columns(["prompt", "answer"])
    with pytest.raises(
        UserError, match=r"'exact' needs the column 'answer', and the data have answers, prompt; did you"
    ):
        rewards.check_columns(["prompt", "answers"])


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("raise", "raised ZeroDivisionError: division by zero"),
        ("hang", "took longer than 1 s"),
        ("nan", "returned nan"),
        ("text", r"returned '0\.5' \(of type str\) instead of a number"),
    ],
)
def test_a_fault_stops_with_function_prompt_and_completion_named(
    completion: str, message: str, workers: int | None
) -> None:
    samples = [Sample("1+1?", "fine", {}), Sample([{"role": "user", "content": "2+2?"}], completion, {})]
    with build_rewards("reward_functions.misbehave", time_limit_seconds=1.0, workers=workers) as rewards:
        with pytest.raises(RewardFailed, match=f"^reward 'misbehave' {message}") as caught:
            rewards.score(samples)
        assert isinstance(caught.value, TrainingStopped)
        assert f"prompt '2+2?', completion '{completion}'" in str(caught.value)
        assert "--reward_on_error=0" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_stops_does_not_wait_for_the_other_completions(workers: int) -> None:
    """With the default limit of a minute, 128 completions on which a function hangs would take two hours."""

    def hangs(completion: str) -> float:
        time.sleep(30)
        return 0.0

    samples = [Sample("1+1=", str(i), {}) for i in range(20)]
    started = time.monotonic()
    with (
        build_rewards(
            {"class_path": hangs, "isolated": bool(workers)}, time_limit_seconds=0.2, workers=workers
        ) as found,
        pytest.raises(RewardFailed, match="'hangs' took longer than 0.2 s"),
    ):
        found.score(samples)
    assert time.monotonic() - started < 2.5, "one limit, not twenty"


def test_a_fault_scores_what_the_user_said_and_is_counted() -> None:
    samples = [Sample("p", text, {}) for text in ("fine", "raise", "nan")]
    with pytest.warns(
        UserWarning, match=r"'misbehave' failed on 2 of 3 completions, which score -1 as .* first one raised"
    ):
        scores = build_rewards("reward_functions.misbehave:2", on_error=-1).score(samples)
    assert scores.total == [2, -2, -2]
    assert scores.num_faults == {"misbehave": 2}


def test_long_texts_are_shortened_in_messages() -> None:
    with pytest.raises(RewardFailed) as caught:
        build_rewards(lambda completion: "x").score([Sample("p\n" * 10_000, "c" * 10_000, {})])
    assert len(str(caught.value)) < 1500


def test_a_pattern_that_never_ends_is_no_match_and_no_fault() -> None:
    pattern = {"class_path": "format", "init_args": {"pattern": "(a+)+b"}, "time_limit_seconds": 1.0}
    with build_rewards([pattern]) as rewards, warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = rewards.score([Sample("p", text, {}) for text in ("aab", "a" * 60, "aab")])
    assert scores.total == [1.0, 0.0, 1.0]
    assert scores.num_faults == {"format": 0}


def test_without_processes_everything_runs_here() -> None:
    with build_rewards("format", workers=0) as rewards:
        assert rewards.score([Sample("p", "<think></think><answer></answer>", {})]).total == [1.0]
        assert multiprocessing.active_children() == []


def test_partial_functions_keep_their_form() -> None:
    tripled = functools.partial(reward_functions.slow_length, factor=3.0)
    assert build_rewards(tripled).score([Sample("p", "ab", {})]).total == [6.0]


def test_samples_travel_to_processes() -> None:
    sample = Sample([{"role": "user", "content": "p"}], "c", {"answer": 1}, [1, 2], True)
    assert pickle.loads(pickle.dumps(sample)) == sample


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, relax.rewards; relax.rewards.build_rewards('exact')\n"
        "heavy = ('transformers', 'datasets', 'math_verify', 'reasoning_gym', 'lightning')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
