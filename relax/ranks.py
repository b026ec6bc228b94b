"""One number over all ranks. Each call is an exchange that every rank must take part in."""

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    import lightning as L


def over_ranks(trainer: "L.Trainer", value: float, op: Literal["sum", "max"]) -> float:
    """The sum or the highest of every rank's ``value``; a single process does not touch the device."""
    if trainer.world_size == 1:
        return value
    own = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(own, reduce_op=op))
