"""Which rank this is, and one number over all of them."""

import os
from typing import TYPE_CHECKING, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    import lightning as L

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order


def over_ranks(trainer: "L.Trainer", value: float, op: Literal["sum", "max"]) -> float:
    """The sum or the highest of every rank's ``value``: an exchange that all take part in, if there are several."""
    if trainer.world_size == 1:
        return value
    own = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(own, reduce_op=op))


def is_main_process() -> bool:
    """Whether this is rank 0; a process that Lightning, torchrun or SLURM started beside it is not."""
    rank = vars(rank_zero_only).get("rank")  # set when Lightning is loaded, and by its strategies
    if rank is None:
        rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), 0)
    return int(rank) == 0
