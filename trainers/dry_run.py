"""A rehearsal: the optimizer step with the largest micro-batch, to see whether it fits before a long run starts."""

import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import Dataset

from relax.data.batching.batches import Batch
from relax.data.batching.epoch import EpochBatches, PlannedBatches
from relax.memory import peak_memory_bytes


@dataclass(frozen=True)
class LargestStep:
    """Only the optimizer step of the first epoch that holds the micro-batch with the most tokens, padding included."""

    batches: PlannedBatches

    @property
    def micro_batches(self) -> int:
        """Of that one step."""
        return self.batches.builder.layout.accumulate

    def open(self, epoch: int, position: int, rows_read: int) -> Dataset[Batch]:
        """Its micro-batches."""
        epoch_batches = self.batches.epoch(0)
        largest = max(range(len(epoch_batches.steps)), key=lambda step: largest_micro_batch(epoch_batches, step))
        return EpochBatches(epoch_batches.data, [epoch_batches.steps[largest]], epoch_batches.builder)


def largest_micro_batch(batches: EpochBatches, step: int) -> int:
    """Tokens that the largest micro-batch of a step computes, on any rank."""
    lengths, padded = batches.data.lengths, batches.builder.layout.padded
    parts = [lengths[part] for slot in batches.cut(step) for part in slot if part]
    return max(int(len(part) * part.max() if padded else part.sum()) for part in parts)


@dataclass(frozen=True)
class DryRun:
    """What one optimizer step took."""

    tokens: int
    """Of the largest micro-batch on this rank, padding included."""
    longest_row: int
    micro_batches: int
    loss: float
    seconds: float
    peak_bytes: int
    device: str

    def __str__(self) -> str:
        return (
            f"Dry run on {self.device}: the step with the largest micro-batch ({self.tokens:,} tokens, longest row "
            f"{self.longest_row:,}; {self.micro_batches} micro-batches) went forward and backward: "
            f"loss {self.loss:.4f}, {self.seconds:.2f} s, peak memory {self.peak_bytes / 2**20:,.0f} MB. "
            "Nothing was written."
        )


class DryRunWatch(L.Callback):
    """Measures the one step."""

    def __init__(self) -> None:
        self.tokens = self.longest_row = self.micro_batches = 0
        self.loss, self.seconds, self.started = float("nan"), 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the count of memory."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self.started = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note the size of a micro-batch."""
        self.tokens = max(self.tokens, batch.input_ids.numel())
        self.longest_row = max(self.longest_row, int(batch.lengths.max()))
        self.micro_batches += 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.loss = float(trainer.callback_metrics["train/loss"])
        self.seconds = time.monotonic() - self.started

    def result(self, device: torch.device) -> DryRun:
        """What was measured on this rank."""
        sizes: dict[str, Any] = {name: vars(self)[name] for name in ("tokens", "longest_row", "micro_batches", "loss")}
        return DryRun(**sizes, seconds=self.seconds, peak_bytes=peak_memory_bytes(device), device=str(device))
