"""The micro-batches of an epoch on one rank, built when asked for, each with the denominators of its whole step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, Subset

from relax.data.batching.batches import Batch
from relax.data.batching.layout import Cut, Layout
from relax.data.batching.planning import Plan, Planned, Step

Collate: TypeAlias = Callable[[Sequence[Any], Sequence[int]], Batch]


@dataclass(frozen=True)
class BatchBuilder:
    """Builds micro-batches of one rank from the samples of an optimizer step."""

    layout: Layout
    rank: int
    collate: Collate

    def build(self, data: Planned, step: Step, cut: Cut, slot: int) -> Batch:
        """Micro-batch ``slot`` of the step; where the cut leaves none, one that only fills it up, of weight 0."""
        mine = cut[slot][self.rank]
        chosen = mine or [int(step.samples[data.lengths[step.samples].argmin()])]
        batch = self.collate([data[i] for i in chosen], [int(data.source_rows[i]) + 1 for i in chosen])
        targets = data.num_targets[step.samples]
        weight = targets.sum() if data.row_weights is None else (targets * data.row_weights[step.samples]).sum()
        return replace(
            batch,
            num_tokens=batch.num_tokens if mine else 0,
            weights=batch.weights if mine else torch.zeros_like(batch.weights),
            step_targets=float(targets.sum()),
            step_weight=float(weight),
            step_sequences=float(len(step.samples)),
            step_micro_batches=self.layout.micro_batches,
        )


class EpochBatches(Dataset[Batch]):
    """The micro-batches of one epoch on one rank, in order (a data worker may be the one who asks)."""

    def __init__(self, data: Planned, steps: list[Step], builder: BatchBuilder) -> None:
        self.data, self.steps, self.builder = data, steps, builder
        self.latest: tuple[int, Cut] = (-1, [])

    def __len__(self) -> int:
        return len(self.steps) * self.builder.layout.accumulate

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of an epoch of {len(self)}")
        step, slot = divmod(index, self.builder.layout.accumulate)
        return self.builder.build(self.data, self.steps[step], self.cut(step), slot)

    def cut(self, step: int) -> Cut:
        """How step number ``step`` is cut."""
        if self.latest[0] != step:
            self.latest = (step, self.builder.layout.cut(self.steps[step], self.data.lengths))
        return self.latest[1]


@dataclass(frozen=True)
class PlannedBatches:
    """The micro-batches of every epoch of a data set whose lengths are known."""

    plan: Plan
    builder: BatchBuilder

    @property
    def micro_batches(self) -> int:
        """Of an epoch, on each rank."""
        return self.plan.num_steps * self.builder.layout.accumulate

    def epoch(self, epoch: int) -> EpochBatches:
        """All of an epoch."""
        return EpochBatches(self.plan.data, self.plan.steps(epoch), self.builder)

    def open(self, epoch: int, position: int, rows_read: int = 0) -> Dataset[Batch]:
        """The micro-batches of an epoch from ``position`` on."""
        batches = self.epoch(epoch)
        return Subset(batches, range(position, len(batches)))
