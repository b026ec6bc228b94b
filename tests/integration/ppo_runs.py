"""Tiny PPO runs for the tests of resuming and of two processes; ``grpo_runs`` records and kills them."""

from functools import partial
from typing import Any

import grpo_runs
import lightning as L
import torch
from torch import nn

from trainers import RLTrainer

SETTINGS: dict[str, Any] = {"num_generations": 1, "kl_coef": 0.2}
"""Those of ``grpo_runs.SETTINGS`` that are others: 32 completions in 2 minibatches, twice."""


def build(*callbacks: L.Callback, **settings: Any) -> RLTrainer:
    """A trainer whose critic knows something: values of 0 everywhere hide errors."""
    trainer: RLTrainer = grpo_runs.build(*callbacks, kind=RLTrainer, **SETTINGS | settings)
    generator = torch.Generator().manual_seed(6)
    for weight in trainer.critic.learned():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return trainer


run = partial(grpo_runs.run, build=build)


class KillWhileAppraising(grpo_runs.KillWhileSampling):
    """kill -9 when the critic has read some of an iteration's completions."""

    def watched(self, module: RLTrainer) -> nn.Module:
        return module.critic
