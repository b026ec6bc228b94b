"""Stops a run before a loss or gradient that is not a finite number reaches the weights, and says where it arose."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from callbacks.checkpoint import Checkpoint
from relax.errors import NonFiniteLoss, UserError
from relax.optimizers import total_norm
from relax.protocols import HasRows, RowLosses
from relax.ranks import over_ranks

_ROWS_SHOWN = 16


class NaNGuard(L.Callback):
    """Raises `NonFiniteLoss` naming the step, the micro-batch, its rows and the last good checkpoint.

    A single process stops before the backward pass of the bad loss; several stop together before the optimizer step,
    because one that left alone would leave the others waiting. Rows are named where the batch has ``rows``, and only
    the guilty ones where the module has ``row_losses(batch)``. With 16-mixed precision the gradient may overflow by
    design (its scaler then skips the step), so there only a loss that is NaN counts.

    Args:
        every_n_steps: look at every so many optimizer steps only; each look waits for the device.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps of NaNGuard must be above 0, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._batch: Any = None
        self._batch_idx = 0
        self._window: list[int] = []  # rows since the last optimizer step
        self._finding = ""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what the loss is about to be computed from."""
        self._batch, self._batch_idx = batch, batch_idx
        if isinstance(batch, HasRows):
            self._window += batch.rows

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Do not keep the batch alive."""
        self._batch = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at the loss of a micro-batch."""
        if self._finding or trainer.global_step % self.every_n_steps or _healthy(loss, scaled=_scales(trainer)):
            return
        rows = _culprits(trainer, pl_module, self._batch)
        self._finding = f"the loss is {loss.item():g} in micro-batch {self._batch_idx}{_name_rows(rows)}"
        if trainer.world_size == 1:
            raise NonFiniteLoss(self._report(trainer))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradient, and whether any rank found something."""
        rows, self._window = self._window, []
        if trainer.global_step % self.every_n_steps:
            return
        bad = bool(self._finding) or not (_scales(trainer) or total_norm(pl_module.parameters()).isfinite())
        if not over_ranks(trainer, bad, "max"):
            return
        if not self._finding:
            self._finding = f"the gradient is not finite although every loss here is{_name_rows(rows)}"
        raise NonFiniteLoss(self._report(trainer))

    def _report(self, trainer: L.Trainer) -> str:
        saved = [c.last_path for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint) and c.last_path]
        advice = f"the last good checkpoint is {saved[0]}" if saved else "there is no checkpoint yet"
        where = f"step {trainer.global_step + 1}, epoch {trainer.current_epoch}"
        rank = f" on rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        return f"stopped before {where}{rank}: {self._finding}; the weights are untouched, {advice}"


def _healthy(loss: Tensor, scaled: bool) -> bool:
    """Waits for the device."""
    return not bool(loss.isnan()) if scaled else bool(loss.isfinite())


def _scales(trainer: L.Trainer) -> bool:
    return isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None


def _culprits(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> list[int]:
    # A sharded model's forward pass needs all ranks, and only this one has something to look for.
    alone = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if isinstance(pl_module, RowLosses) and alone:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            losses = pl_module.row_losses(batch)
        guilty = [row for row, loss in losses.items() if not torch.tensor(loss).isfinite()]
        if guilty:
            return guilty
    return list(batch.rows) if isinstance(batch, HasRows) else []


def _name_rows(rows: list[int]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f" (rows {', '.join(map(str, rows[:_ROWS_SHOWN]))}{more})"
