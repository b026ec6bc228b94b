"""What a function is given, and what its answers mean; faults are told apart without raising."""

import asyncio
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import reward_functions
import torch

from relax.errors import UserError
from relax.rewards import Sample
from relax.rewards.binding import read_signature
from relax.rewards.evaluation import MAX_CONCURRENT, Reward, evaluate
from relax.rewards.samples import Fault, Outcome

SAMPLES = [
    Sample("p1", "c1", {"answer": "a1", "level": 1, "completion": "hidden"}, [5, 6], False),
    Sample([{"role": "user", "content": "p2"}], "c2", {"answer": "a2"}, [7], True),
]


def outcomes(function: Any, *completions: str, seconds: float | None = None) -> list[Outcome]:
    reward = Reward("r", function, read_signature(function, "r"))
    return evaluate(reward, [Sample("p", c, {}) for c in completions] if completions else SAMPLES, seconds)


def test_a_plain_function_gets_what_it_names() -> None:
    seen = []

    def reward(completion: str, prompt: Any, answer: str, completion_ids: Any, truncated: bool, level: int = 9) -> int:
        seen.append((completion, prompt, answer, completion_ids, truncated, level))
        return 1

    assert outcomes(reward) == [1.0, 1.0]
    assert seen == [("c1", "p1", "a1", [5, 6], False, 1), ("c2", SAMPLES[1].prompt, "a2", [7], True, 9)]


def test_a_batched_function_gets_lists_and_none_where_a_row_lacks_a_column() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5, 1.5]

    assert outcomes(reward) == [0.5, 1.5]
    assert seen == {
        "prompts": [s.prompt for s in SAMPLES],
        "completions": ["c1", "c2"],
        "completion_ids": [[5, 6], [7]],
        "truncated": [False, True],
        "answer": ["a1", "a2"],
        "level": [1, None],
        "completion": ["hidden", None],
    }


def test_a_plain_function_that_takes_any_column_gets_ours_where_names_meet() -> None:
    def reward(completion: str, **columns: Any) -> float:
        return float(
            completion == "c1" and columns.keys() == {"answer", "level", "prompt", "completion_ids", "truncated"}
        )

    assert outcomes(reward)[0] == 1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (torch.tensor(0.5), 0.5),
        (float("nan"), Fault("returned nan")),
        (float("-inf"), Fault("returned -inf")),
        ("0.5", Fault("returned '0.5' (of type str) instead of a number or None")),
        ([1.0], Fault("returned [1.0] (of type list) instead of a number or None")),
        (1j, Fault("returned 1j (of type complex) instead of a number or None")),
    ],
)
def test_what_counts_as_a_score(value: Any, expected: Outcome) -> None:
    assert outcomes(lambda completion: value, "c") == [expected]
    assert outcomes(lambda completions: [value, 0.25], "c", "d") == [expected, 0.25]


@pytest.mark.parametrize("value", [(1, 2), np.array([1, 2]), torch.tensor([1.0, 2.0])])
def test_batches_of_scores_may_be_arrays(value: Any) -> None:
    assert outcomes(lambda completions: value, "c", "d") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([1.0], "returned 1 scores for 2 completions, in a call on 2 completions"),
        (None, "returned None (of type NoneType) instead of a list of scores, in a call on 2 completions"),
        ("ab", "returned 'ab' (of type str) instead of a list of scores, in a call on 2 completions"),
        (torch.ones(3), "returned 3 scores for 2 completions, in a call on 2 completions"),
    ],
)
def test_a_wrong_batch_is_the_fault_of_all(value: Any, what: str) -> None:
    assert outcomes(lambda completions: value, "c", "d") == [Fault(what)] * 2


@pytest.mark.parametrize("seconds", [None, 30])
def test_an_error_is_told_with_its_place(seconds: float | None) -> None:
    right, wrong = outcomes(reward_functions.misbehave, "fine", "raise", seconds=seconds)
    assert right == 1.0
    assert isinstance(wrong, Fault)
    assert wrong.what.startswith("raised ZeroDivisionError: division by zero (reward_functions.py:")
    assert not wrong.over_limit


@pytest.mark.parametrize("seconds", [None, 30])
def test_a_function_that_wants_to_exit_does_not_end_the_run_unseen(seconds: float | None) -> None:
    def leave(completion: str) -> float:
        sys.exit(0)

    (fault,) = outcomes(leave, "c", seconds=seconds)
    assert isinstance(fault, Fault)
    assert fault.what.startswith("raised SystemExit: 0")


class Recorder:
    """Sleeps as many seconds as the completion says, or fails; keeps which calls began, and in which threads."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, completion: str) -> float:
        self.begun.append(completion)
        self.threads.add(threading.current_thread())
        time.sleep(float(completion))
        return float(completion)


LATE = Fault("took longer than 0.2 s", over_limit=True)


def test_a_plain_function_that_hangs_is_given_up_and_the_others_count() -> None:
    fine, hang, wrong = "fine", "hang", "raise"
    results = outcomes(reward_functions.misbehave, fine, hang, wrong, fine, hang, hang, fine, seconds=0.2)
    assert isinstance(results[2], Fault)
    assert "ZeroDivisionError" in results[2].what
    assert [*results[:2], *results[3:]] == [1.0, LATE, 1.0, LATE, LATE, 1.0]


def test_one_thread_makes_all_calls_and_another_goes_on_after_each_that_hangs() -> None:
    quick, hanging, unlimited = Recorder(), Recorder(), Recorder()
    completions = [f"{i / 1e6}" for i in range(100)]
    assert outcomes(quick, *completions, seconds=30) == [float(c) for c in completions]
    assert len(quick.threads) == 1
    assert all(thread.daemon for thread in quick.threads)
    assert outcomes(hanging, "60", "0", "60", "0", "60", seconds=0.2) == [LATE, 0.0, LATE, 0.0, LATE]
    assert len(hanging.threads) == 3
    outcomes(unlimited, *completions)
    assert unlimited.threads == {threading.current_thread()}


def test_the_limit_is_for_each_call_and_not_for_all() -> None:
    reward = Recorder()
    assert outcomes(reward, *["0.08"] * 8, seconds=0.4) == [0.08] * 8
    assert len(reward.threads) == 1


def test_a_call_that_ends_after_it_was_given_up_is_followed_by_no_other() -> None:
    reward = Recorder()
    assert outcomes(reward, "0", "0.5", "0.01", "0.02", seconds=0.2) == [0.0, LATE, 0.01, 0.02]
    for thread in reward.threads:
        thread.join(10)
        assert not thread.is_alive()
    assert reward.begun == ["0", "0.5", "0.01", "0.02"]


def test_ctrl_c_ends_the_wait_and_what_is_under_way_is_the_last_call() -> None:
    reward = Recorder()

    def interrupted(completion: str) -> float:
        if completion == "0.3":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return reward(completion)

    with pytest.raises(KeyboardInterrupt):
        outcomes(interrupted, "0.3", "0", seconds=30)
    for thread in reward.threads:
        thread.join(10)
    assert reward.begun == ["0.3"]


@pytest.mark.parametrize("seconds", [None, 30])
def test_what_is_no_fault_of_the_function_is_raised_and_ends_the_calls(seconds: float | None) -> None:
    begun = []

    def reward(completion: str) -> float:
        begun.append(completion)
        if completion == "stop":
            raise KeyboardInterrupt("by hand")
        return 1.0

    with pytest.raises(KeyboardInterrupt, match="by hand"):
        outcomes(reward, "a", "stop", "b", seconds=seconds)
    assert begun == ["a", "stop"]


@pytest.mark.parametrize("seconds", [None, 30])
def test_a_score_is_read_before_the_next_call(seconds: float | None) -> None:
    total = torch.zeros(())
    assert outcomes(lambda completion: total.add_(1), "a", "b", "c", seconds=seconds) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("function", [reward_functions.misbehave_together])
def test_a_batched_function_that_hangs_is_given_up(function: Any) -> None:
    late = Fault("took longer than 0.2 s, in a call on 2 completions", over_limit=True)
    assert outcomes(function, "hang", "fine", seconds=0.2) == [late, late]


def test_async_calls_run_together_and_faults_stay_apart() -> None:
    start = time.perf_counter()
    results = outcomes(reward_functions.slow_length, *["abc"] * MAX_CONCURRENT, seconds=30)
    assert results == [3.0] * MAX_CONCURRENT
    assert time.perf_counter() - start < 0.05 * MAX_CONCURRENT / 2
    late = Fault("took longer than 0.2 s", over_limit=True)
    hang, fine, wrong = outcomes(reward_functions.misbehave_async, "hang", "fine", "raise", seconds=0.2)
    assert (hang, fine) == (late, 1.0)
    assert isinstance(wrong, Fault)
    assert "ZeroDivisionError" in wrong.what


def test_an_async_function_that_blocks_its_loop_is_given_up() -> None:
    late = Fault("took longer than 1.2 s", over_limit=True)
    assert outcomes(reward_functions.misbehave_async, "block", "fine", seconds=0.2) == [late, late]


def test_async_functions_work_where_a_loop_is_running_already() -> None:
    async def notebook() -> list[Outcome]:
        return outcomes(reward_functions.slow_batch, "abc", "a", seconds=30)

    assert asyncio.run(notebook()) == [3.0, 1.0]


def test_an_own_time_out_of_an_async_function_is_its_error_not_our_limit() -> None:
    async def reward(completion: str) -> float:
        raise TimeoutError("the judge is busy")

    (fault,) = outcomes(reward, "c", seconds=30)
    assert isinstance(fault, Fault)
    assert fault.what.startswith("raised TimeoutError: the judge is busy")


def test_positional_only_parameters_are_refused() -> None:
    def reward(completion: str, answer: str, /) -> float:
        return 0.0

    with pytest.raises(UserError, match="positional-only"):
        read_signature(reward, "r")
