"""Noise as a function of the step, so that a resumed run draws what the uninterrupted one would have drawn."""

from typing import Any

import lightning as L

from relax.seeding import seed_generators


class StepSeed(L.Callback):
    """Before every micro-batch, seeds Python, NumPy and torch from (seed, rank, epoch, micro-batch).

    There is no generator state to save: dropout on every rank depends on nothing else. The trainers of ReLax do the
    same by themselves; this is for other LightningModules.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook."""
        seed_generators(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
