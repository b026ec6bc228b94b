"""Figures of an optimizer step or of a validation: means over its micro-batches and over the ranks."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


class Figures:
    """Sums what micro-batches report, until ``means`` is asked for. Nothing waits for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """The figures of one micro-batch: scalars, under the same names each time."""
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in figures.items()}
        self.count += 1

    def means(self, strategy: "Strategy") -> dict[str, Tensor]:
        """Means over what was added on all ranks, in one exchange; then it starts anew."""
        values = torch.stack([value.float() for value in self.sums.values()]) / self.count
        values = strategy.reduce(values, reduce_op="mean")
        means = dict(zip(self.sums, values, strict=True))
        self.clear()
        return means

    def clear(self) -> None:
        """Forget what was added."""
        self.sums, self.count = {}, 0
