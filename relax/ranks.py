"""Which rank this is, and one number over all of them."""

from typing import TYPE_CHECKING, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    import lightning as L


def over_ranks(trainer: "L.Trainer", value: float, op: Literal["sum", "max"]) -> float:
    """The sum or the highest of every rank's ``value``: an exchange that all take part in, if there are several."""
    if trainer.world_size == 1:
        return value
    own = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(own, reduce_op=op))


def is_main_process() -> bool:
    """Whether this is rank 0; a process that Lightning, torchrun or SLURM started beside it is not."""
    return int(rank_zero_only.rank) == 0
