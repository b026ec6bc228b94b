"""Watches that rollouts are sampled by the latest weights, for tests in one process and in two."""

from typing import Any

import lightning as L

from relax.rollout import Rollouts
from trainers.on_policy import OnPolicyTrainer


class WatchedEngine:
    """What is asked of an engine, when: after how many optimizer steps, with which weights."""

    def __init__(self, module: OnPolicyTrainer) -> None:
        self.module, self.engine = module, module.engine
        self.steps_done = 0
        self.calls: list[tuple[int, float]] = []
        self.numbers: list[int] = []

    def state(self) -> tuple[int, float]:
        """Optimizer steps so far, and the sum of all weights."""
        return self.steps_done, sum(float(p.detach().double().sum()) for p in self.module.model.parameters())

    def count_step(self, *_: Any) -> None:
        self.steps_done += 1

    def generate(self, prompts: Any, **settings: Any) -> Rollouts:
        self.calls.append(self.state())
        self.numbers += settings["prompt_ids"]
        return self.engine.generate(prompts, **settings)


class Freshness(L.Callback):
    """At the first micro-batch of each iteration: were its rollouts sampled by the weights that are there now?"""

    def __init__(self) -> None:
        self.checked: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.engine = WatchedEngine(pl_module)
        pl_module.engine = self.engine
        trainer.optimizers[0].register_step_post_hook(self.engine.count_step)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and self.engine.calls:  # a rank may have no share of the prompts
            assert self.engine.calls[-1] == self.engine.state()
            assert self.engine.steps_done == trainer.global_step
            self.checked.append(trainer.global_step)
