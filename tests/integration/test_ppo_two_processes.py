"""Two processes learn what one learns, policy and critic; they resume bit for bit; none waits for a dead one."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from grpo_runs import diary, fine, history, state
from ppo_runs import KillWhileAppraising, build, run
from test_grpo_two_processes import TWO, check_two_processes, fit
from two_ranks import on_two_ranks, said

from callbacks import AdaptiveKL, NaNGuard
from relax.critic import Critic

CASES: dict[str, dict[str, Any]] = {
    "separate, warm-up, normalized, halted": {
        **{"critic_warmup_steps": 2, "normalize_rewards": True, "target_kl": 0.002, "micro_batch_size": 2},
        **{"critic_learning_rate": 3e-2, "missing_eos_penalty": 0.5},
    },
    "shared, a budget of tokens, halted": {
        **{"critic": "shared", "top_p": 0.9, "target_kl": 0.002, "kl_in_loss": True, "entropy_coef": 0.01},
        **{"micro_batch_size": None, "max_tokens_per_micro_batch": 64, "max_prompt_length": 10, "score": fine},
    },
    "adapter, halted": {
        **{"lora": True, "lora_dropout": 0.0, "target_kl": 0.002, "bootstrap_truncated": True},
        **{"gradient_checkpointing": True, "critic_warmup_steps": 1},
    },
    "a prompt for one rank": {
        **{"num_generations": 4, "batch_size": 4, "micro_batch_size": 2, "steps_per_generation": 1, "max_steps": 6},
        **{"score": fine, "critic_warmup_steps": 1},
    },
    "three prompts, cut-off ones masked": {
        **{"num_generations": 4, "batch_size": 12, "micro_batch_size": 6, "steps_per_generation": 1, "max_steps": 6},
        **{"critic": "shared", "mask_truncated": True, "score": fine, "critic_warmup_steps": 3},
    },
}


class Halts(L.Callback):
    """Which optimizer steps found the iteration halted."""

    def __init__(self) -> None:
        self.steps: set[int] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if module.halted:
            self.steps.add(trainer.global_step)


def run_case(name: str, *callbacks: L.Callback, **settings: Any) -> dict[str, Any]:
    halts = Halts()
    adapting = AdaptiveKL(target=0.05, horizon=40)
    found = fit(adapting, halts, *callbacks, build=build, **CASES[name] | settings)
    assert bool(halts.steps) == ("halted" in name), "in the middle of an iteration"
    return found | {"halts": sorted(halts.steps)}


def test_two_processes_write_and_learn_what_one_does(tmp_path: Path) -> None:
    compared = list(check_two_processes(tmp_path, CASES, run_case, "a prompt for one rank"))
    assert len(compared) == len(CASES)
    for first, second, alone in compared:
        assert first["halts"] == second["halts"] == alone["halts"]


def test_two_processes_of_which_one_is_killed_resume_bit_for_bit(tmp_path: Path) -> None:
    def train(folder: str, rank: int, *kill: L.Callback, **more: Any) -> None:
        settings = {"lora": True, "lora_dropout": 0.0, "normalize_rewards": True, "target_kl": 0.002}
        run(tmp_path / folder, AdaptiveKL(target=0.05, horizon=40), *kill, **settings, **TWO, **more)

    kill = [[], [KillWhileAppraising(iteration=1)]]
    assert on_two_ranks(lambda rank: train("whole", rank), tmp_path) == [0, 0], said(tmp_path, 0)[-3000:]
    codes = on_two_ranks(lambda rank: train("killed", rank, *kill[rank]), tmp_path)
    assert codes[1] == -9
    assert codes[0] not in (0, None), "the other one ends, too"
    assert on_two_ranks(lambda rank: train("killed", rank, resume="auto"), tmp_path) == [0, 0]
    for rank in (0, 1):
        assert diary(tmp_path / "killed", rank) == diary(tmp_path / "whole", rank)
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert state(tmp_path / "killed", 10) == state(tmp_path / "whole", 10)


class PoisonedCritic(L.Callback):
    """On one rank the critic's values are no numbers in training, from the second step on."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 1:
            module.critic.register_forward_hook(_not_a_number)


def _not_a_number(critic: Critic, inputs: Any, values: torch.Tensor) -> torch.Tensor:
    return values * torch.nan


def test_values_that_are_no_numbers_in_one_process_end_both(tmp_path: Path) -> None:
    def fail(rank: int) -> None:
        build(PoisonedCritic(), NaNGuard(), **TWO).train()

    started = time.monotonic()
    codes = on_two_ranks(fail, tmp_path)
    assert None not in codes
    assert 0 not in codes
    assert time.monotonic() - started < 60
    assert "NonFiniteLoss: stopped before step 2, epoch 0 on rank 1: the loss is nan" in said(tmp_path, 1)
