"""A GRPO run that is killed wherever it is, and resumed, is bit for bit the run that was not."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from conftest import build_llama
from grpo_runs import (
    ITERATION,
    KillAtTheEnd,
    KillWhileSampling,
    KillWhileSaving,
    KillWhileScoring,
    diary,
    fine,
    history,
    run,
    seven,
    state,
)
from killing import KillAt
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from test_resume import in_child

from callbacks import AdaptiveKL, Checkpoint, LinearKL, SafeInterrupt
from relax.errors import UserError
from relax.rewards.samples import RewardFailed
from relax.tasks.sorting import Sorting
from trainers import SFTTrainer

EVERYWHERE: dict[str, Callable[[], L.Callback]] = {
    "sampling, before there is a checkpoint": lambda: KillWhileSampling(iteration=0),
    "in the middle of the experience": lambda: KillAt(ITERATION - 1, micro_batch=1),
    "scoring": lambda: KillWhileScoring(iteration=1),
    "sampling": lambda: KillWhileSampling(iteration=1),
    "the last step of an iteration, not saved": lambda: KillAtTheEnd(iteration=1, saved=False),
    "saving": lambda: KillWhileSaving(2 * ITERATION),
    "the end of an iteration, saved": lambda: KillAtTheEnd(iteration=1, saved=True),
}
SOME = {name: EVERYWHERE[name] for name in ("in the middle of the experience", "sampling", "scoring", "saving")}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Callable[[], L.Callback]], Callable[[], list[L.Callback]]]] = {
    "dynamic sampling, adaptive KL, dropout": (
        {"preset": "grpo", "kl_coef": 0.2, "dynamic_sampling": True, "dropout": 0.2},
        EVERYWHERE,
        lambda: [AdaptiveKL(target=0.05, horizon=40)],
    ),
    "LoRA, linear KL": (
        {"preset": "grpo", "kl_coef": 0.2, "lora": True},
        SOME,
        lambda: [LinearKL(end=0, steps=9)],
    ),
    "fewer prompts than an iteration asks, top-entropy tokens, a budget of tokens, bf16": (
        {"prompts": 3, "top_entropy_share": 0.5, "micro_batch_size": None, "max_tokens_per_micro_batch": 100}
        | {"max_prompt_length": 10, "dynamic_sampling": True, "max_epochs": 3, "precision": "bf16-mixed"},
        SOME,
        lambda: [],
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_killed_again_and_again_is_bit_for_bit_the_whole_one(name: str, tmp_path: Path) -> None:
    settings, kills, schedules = VARIANTS[name]

    def start(folder: str, *kill: L.Callback, **more: Any) -> None:
        scoring = [killer for killer in kill if isinstance(killer, KillWhileScoring)]
        scorer = {"score": scoring[0].score} if scoring else {}
        run(tmp_path / folder, *schedules(), *kill, **settings, **scorer, **more)

    assert in_child(lambda: start("whole")) == 0
    for place, kill in kills.items():
        assert in_child(lambda kill=kill: start("killed", kill(), resume="auto")) == -signal.SIGKILL, place
    assert in_child(lambda: start("killed", resume="auto")) == 0

    whole = diary(tmp_path / "whole")
    assert len(whole) >= 10
    assert all(len(entries) == 1 for entries in whole.values())
    assert diary(tmp_path / "killed") == whole
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert state(tmp_path / "killed", 10) == state(tmp_path / "whole", 10)


def test_a_signal_while_sampling_stops_at_the_next_step_with_a_checkpoint(tmp_path: Path) -> None:
    def start(folder: str, *extra: L.Callback, **more: Any) -> None:
        run(tmp_path / folder, *extra, SafeInterrupt(tmp_path / folder / "checkpoints"), **more)

    assert in_child(lambda: start("whole")) == 0
    assert in_child(lambda: start("stopped", KillWhileSampling(iteration=1, signum=signal.SIGTERM))) == 0
    assert (tmp_path / "stopped/checkpoints/step=00000005.ckpt").exists()
    assert in_child(lambda: start("stopped", resume="auto")) == 0
    assert diary(tmp_path / "stopped") == diary(tmp_path / "whole")
    assert state(tmp_path / "stopped", 10) == state(tmp_path / "whole", 10)


def test_a_checkpoint_of_a_failed_rollout_does_not_pass_the_old_experience_off_as_new(tmp_path: Path) -> None:
    """Lightning's own callback saves whatever there is, when a reward function raises."""

    def failing(completion: str) -> float:
        failing.calls += 1  # type: ignore[attr-defined]
        if failing.calls == 40:  # type: ignore[attr-defined]
            raise ConnectionError("the judge is away")
        return seven(completion)

    failing.calls = 0  # type: ignore[attr-defined]
    run(tmp_path / "whole")
    with pytest.raises(RewardFailed, match="'seven' raised ConnectionError: the judge is away"):
        run(tmp_path / "failed", OnExceptionCheckpoint(tmp_path, "failed"), score=failing)
    run(tmp_path / "failed", resume=str(tmp_path / "failed.ckpt"))
    assert diary(tmp_path / "failed") == diary(tmp_path / "whole")
    assert state(tmp_path / "failed", 10) == state(tmp_path / "whole", 10)


@pytest.mark.parametrize("first", [2 * ITERATION, 2 * ITERATION + 1], ids=["an iteration's end", "inside one"])
def test_a_finished_run_is_made_longer_bit_for_bit(first: int, tmp_path: Path) -> None:
    run(tmp_path / "whole", dynamic_sampling=True)
    run(tmp_path / "longer", dynamic_sampling=True, max_steps=first)
    run(tmp_path / "longer", dynamic_sampling=True, resume="auto")
    assert diary(tmp_path / "longer") == diary(tmp_path / "whole")
    assert state(tmp_path / "longer", 10) == state(tmp_path / "whole", 10)


def test_times_of_a_resumed_experience_begin_with_the_run(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    started = time.perf_counter()
    run(tmp_path, max_steps=3, resume="auto")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[2]["step"] == 3
    assert 0 < rows[2]["train/seconds_update"] < time.perf_counter() - started


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "group": ({"num_generations": 8}, "num_generations: the checkpoint has 4"),
    "preset": ({"preset": "dr_grpo"}, "preset: the checkpoint has dapo"),
    "temperature": ({"temperature": 0.5}, "temperature: the checkpoint has 1.0"),
    "passes": ({"num_iterations": 1}, "num_iterations: the checkpoint has 2"),
    "dynamic sampling": ({"dynamic_sampling": True}, "dynamic_sampling: the checkpoint has False"),
    "rewards": (
        {"rewards": [seven, fine]},
        r"rewards: the checkpoint has {'seven': 1.0}, this run {'seven': 1.0, 'fine': 1.0}",
    ),
    "prompts": ({"prompts": 41}, "data: "),
    "seed": ({"seed": 1}, "seed: the checkpoint has 0"),
}


def test_checkpoints_of_other_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    run(tmp_path / "run", max_steps=2)
    for change, message in CHANGES.values():
        with pytest.raises(UserError, match=f"^a run can only be resumed with the same {message}.*") as refusal:
            run(tmp_path / "run", resume="auto", **change)
        assert "\n" not in str(refusal.value)
    task, folder = Sorting(), tmp_path / "sft"
    quick: dict[str, Any] = {"accelerator": "cpu", "max_steps": 1, "batch_size": 16, "enable_progress_bar": False}
    quick |= {"callbacks": [Checkpoint(folder / "checkpoints")], "output_dir": folder}
    SFTTrainer(build_llama(), task.build_tokenizer(), train_dataset=task.train_rows(16), **quick).train()
    with pytest.raises(UserError, match="of a run without rollouts; --resume continues a run of the same trainer"):
        run(folder, resume="auto")


def test_another_start_is_another_reference(tmp_path: Path) -> None:
    """The weights come from the checkpoint, but what they are kept near comes with the model."""
    run(tmp_path, max_steps=2, kl_coef=0.1)
    with pytest.raises(UserError, match="can only be resumed with the same reference weights"):
        run(tmp_path, resume="auto", kl_coef=0.1, dropout=0.1, start=1)
