"""A rehearsal: the optimizer step with the largest micro-batch, to see whether it fits before a long run starts.

It is taken twice: only in the second do activations lie in memory together with the state of the optimizer.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import Dataset

from relax.data.batching.batches import Batch
from relax.data.batching.epoch import EpochBatches, PlannedBatches
from relax.errors import TrainingStopped
from relax.lightning_loop import step_completed
from relax.memory import peak_memory_bytes
from relax.ranks import over_ranks

STEPS = 2
REHEARSAL: dict[str, Any] = {
    **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "log_every_n_steps": 1},
    **{"limit_val_batches": 0, "limit_train_batches": 1.0, "max_steps": STEPS, "max_epochs": 1, "max_time": None},
}
"""Lightning's arguments for it, whatever those of the run are."""


@dataclass(frozen=True)
class LargestStep:
    """The optimizer step of the first epoch with the largest micro-batch in tokens, padding included; twice."""

    batches: PlannedBatches

    @property
    def micro_batches(self) -> int:
        """Of both."""
        return STEPS * self.batches.builder.layout.accumulate

    def open(self, epoch: int, position: int, rows_read: int) -> Dataset[Batch]:
        """Its micro-batches."""
        epoch_batches = self.batches.epoch(0)
        largest = max(range(len(epoch_batches.steps)), key=lambda step: largest_micro_batch(epoch_batches, step))
        return EpochBatches(epoch_batches.data, [epoch_batches.steps[largest]] * STEPS, epoch_batches.builder)


def largest_micro_batch(batches: EpochBatches, step: int) -> int:
    """Tokens that the largest micro-batch of a step computes, on any rank."""
    lengths, padded = batches.data.lengths, batches.builder.layout.padded
    parts = [lengths[part] for slot in batches.cut(step) for part in slot if part]
    return max(int(len(part) * part.max() if padded else part.sum()) for part in parts)


@dataclass(frozen=True)
class DryRun:
    """What the optimizer step took: the most of all ranks."""

    step: str
    """Which one it was."""
    tokens: int
    """Of the largest micro-batch, padding included."""
    longest_row: int
    micro_batches: int
    """Of one step, on each rank."""
    loss: float
    """Before the weights are changed."""
    seconds: float
    """Of the last step."""
    peak_bytes: int
    device: str

    def __str__(self) -> str:
        number = "1 micro-batch" if self.micro_batches == 1 else f"{self.micro_batches} micro-batches"
        return (
            f"Dry run on {self.device}: {self.step} ({self.tokens:,} tokens, longest row {self.longest_row:,}; "
            f"{number}) went forward and backward: loss {self.loss:.4f}, {self.seconds:.2f} s, "
            f"peak memory {self.peak_bytes / 2**20:,.0f} MB. No run was written."
        )


class DryRunWatch(L.Callback):
    """Measures the steps."""

    def __init__(self) -> None:
        self.tokens = self.longest_row = self.micro_batches = self.peak_bytes = 0
        self.losses: list[float] = []
        self.seconds = self.started = 0.0
        self.device = torch.device("cpu")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the count of memory."""
        self.device = pl_module.device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.started = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note the size of a micro-batch."""
        self.tokens = max(self.tokens, batch.input_ids.numel())
        self.longest_row = max(self.longest_row, int(batch.lengths.max()))
        self.micro_batches += trainer.global_step == 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note loss and time of a step."""
        if step_completed(trainer):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))  # waits for the device
            now = time.monotonic()
            self.seconds, self.started = now - self.started, now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the other ranks."""
        own = (self.tokens, self.longest_row, peak_memory_bytes(self.device))
        self.tokens, self.longest_row, self.peak_bytes = (int(over_ranks(trainer, x, "max")) for x in own)

    def result(self, step: str) -> DryRun:
        """What was measured.

        Raises:
            TrainingStopped: a loss is not finite.
        """
        if not all(map(math.isfinite, self.losses)):
            raise TrainingStopped(f"dry run: the loss of {step} is {self.losses[0]:g}, then {self.losses[-1]:g}")
        sizes = (self.tokens, self.longest_row, self.micro_batches)
        return DryRun(step, *sizes, self.losses[0], self.seconds, self.peak_bytes, str(self.device))
