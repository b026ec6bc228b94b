"""A PPO run that is killed wherever it is, and resumed, is bit for bit the run that was not: the critic included."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpo_runs
import lightning as L
import pytest
import torch
from grpo_runs import (
    ITERATION,
    KillAtTheEnd,
    KillWhileSampling,
    KillWhileSaving,
    KillWhileScoring,
    diary,
    history,
    seven,
    state,
)
from killing import KillAt
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from ppo_runs import KillWhileAppraising, run
from test_resume import in_child

from callbacks import AdaptiveKL, LinearKL
from relax.errors import UserError
from relax.rewards.samples import RewardFailed

WARM_UP = 3
HALTED_AT = ITERATION + 2
"""The first step that is not computed: the one before it led too far."""
HALTING = {"critic_warmup_steps": WARM_UP, "target_kl": 0.002}
EVERYWHERE: dict[str, Callable[[], L.Callback]] = {
    "sampling, before there is a checkpoint": lambda: KillWhileSampling(iteration=0),
    "the critic's warm-up": lambda: KillAt(WARM_UP - 1, micro_batch=1),
    "scoring": lambda: KillWhileScoring(iteration=1),
    "appraising": lambda: KillWhileAppraising(iteration=1),
    "in the middle of the experience": lambda: KillAt(ITERATION + 1, micro_batch=1),
    "after the iteration was halted": lambda: KillAt(HALTED_AT + 1, micro_batch=1),
    "saving": lambda: KillWhileSaving(2 * ITERATION),
    "the end of an iteration, saved": lambda: KillAtTheEnd(iteration=1, saved=True),
}
SOME = {name: EVERYWHERE[name] for name in ("the critic's warm-up", "appraising", "after the iteration was halted")}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Callable[[], L.Callback]], Callable[[], list[L.Callback]]]] = {
    "separate, normalized rewards, adaptive KL": (
        {"critic": "separate", "normalize_rewards": True},
        EVERYWHERE,
        lambda: [AdaptiveKL(target=0.05, horizon=40)],
    ),
    "shared, dropout, a budget of tokens": (
        {"critic": "shared", "dropout": 0.2, "bootstrap_truncated": True}
        | {"micro_batch_size": None, "max_tokens_per_micro_batch": 64, "max_prompt_length": 10},
        SOME,
        lambda: [],
    ),
    "adapter, linear KL in the loss, bf16": (
        {"lora": True, "lora_dropout": 0.0, "kl_in_loss": True, "target_kl": 0.001, "precision": "bf16-mixed"}
        | {"missing_eos_penalty": 1.0},
        SOME,
        lambda: [LinearKL(end=0, steps=9)],
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_killed_again_and_again_is_bit_for_bit_the_whole_one(name: str, tmp_path: Path) -> None:
    settings, kills, schedules = VARIANTS[name]

    def start(folder: str, *kill: L.Callback, **more: Any) -> None:
        scoring = [killer for killer in kill if isinstance(killer, KillWhileScoring)]
        scorer = {"score": scoring[0].score} if scoring else {}
        run(tmp_path / folder, *schedules(), *kill, **HALTING | settings, **scorer, **more)

    assert in_child(lambda: start("whole")) == 0
    for place, kill in kills.items():
        assert in_child(lambda kill=kill: start("killed", kill(), resume="auto")) == -signal.SIGKILL, place
    assert in_child(lambda: start("killed", resume="auto")) == 0

    whole = diary(tmp_path / "whole")
    assert all(len(entries) == 1 for entries in whole.values())
    halted = {entry["step"] for entries in whole.values() for entry in map(json.loads, entries) if entry["halted"]}
    assert halted == {HALTED_AT, HALTED_AT + 1}
    assert diary(tmp_path / "killed") == whole
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert state(tmp_path / "killed", 10) == state(tmp_path / "whole", 10)


def test_the_whole_state_is_in_a_checkpoint(tmp_path: Path) -> None:
    """Moments of both, the running moments of the scores, what is halted: all that ``state`` compares is there."""
    module = run(tmp_path, normalize_rewards=True, max_steps=HALTED_AT, **HALTING)
    saved = torch.load(tmp_path / f"checkpoints/step={HALTED_AT:08d}.ckpt", weights_only=True)
    assert {name.partition(".")[0] for name in saved["state_dict"]} == {"model", "critic"}
    trained = [p for p in module.parameters() if p.requires_grad]
    assert len(saved["optimizer_states"][0]["state"]) == len(trained)
    assert saved["ppo"]["halted"]
    assert saved["ppo"]["steps_learned"] == 1
    assert saved["ppo"]["score_moments"][0] == 2 * 32
    assert {"values", "advantages", "returns"} <= saved["rollouts"]["experience"]["tokens"].keys()


def test_a_run_whose_reward_fails_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """What Lightning's own callback saves then has the moments of the scores that were learned from, and no others."""

    def failing(completion: str) -> float:
        failing.calls += 1  # type: ignore[attr-defined]
        if failing.calls == 40:  # type: ignore[attr-defined]
            raise ConnectionError("the judge is away")
        return seven(completion)

    failing.calls = 0  # type: ignore[attr-defined]
    run(tmp_path / "whole", normalize_rewards=True, max_steps=6)
    with pytest.raises(RewardFailed, match="'seven' raised ConnectionError: the judge is away"):
        run(tmp_path / "failed", OnExceptionCheckpoint(tmp_path, "failed"), score=failing, normalize_rewards=True)
    run(tmp_path / "failed", resume=str(tmp_path / "failed.ckpt"), normalize_rewards=True, max_steps=6)
    assert diary(tmp_path / "failed") == diary(tmp_path / "whole")
    assert state(tmp_path / "failed", 6) == state(tmp_path / "whole", 6)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "gamma": ({"gamma": 0.9}, "gamma: the checkpoint has 1.0"),
    "critic's rate": ({"critic_learning_rate": 0.5}, "critic_learning_rate: the checkpoint has "),
    "target": ({"target_kl": 1.0}, "target_kl: the checkpoint has None"),
}


def test_checkpoints_of_other_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    run(tmp_path / "separate", max_steps=2)
    for change, message in CHANGES.values():
        with pytest.raises(UserError, match=f"^a run can only be resumed with the same {message}.*") as refusal:
            run(tmp_path / "separate", resume="auto", **change)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="critic: the checkpoint has separate.* shared") as refusal:
        run(tmp_path / "separate", resume="auto", critic="shared")
    assert "\n" not in str(refusal.value)
    by_default = {"critic": "separate", "critic_learning_rate": 1e-2}
    run(tmp_path / "separate", resume="auto", max_steps=3, **by_default)


def test_checkpoints_of_another_trainer_are_refused_in_one_line(tmp_path: Path) -> None:
    grpo_runs.run(tmp_path / "grpo", max_steps=2)
    with pytest.raises(UserError, match="of a run without a critic; --resume continues a run of the same trainer"):
        run(tmp_path / "grpo", resume="auto")
    run(tmp_path / "ppo", max_steps=2)
    with pytest.raises(UserError, match="the checkpoint .*critic.*") as refusal:
        grpo_runs.run(tmp_path / "ppo", resume="auto")
    assert "\n" not in str(refusal.value)
