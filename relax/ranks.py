"""Which rank this is, one number over all of them, and an orderly end of what they exchange numbers by."""

import atexit
import os
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
import torch.distributed
from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    import lightning as L

T = TypeVar("T")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order


def over_ranks(trainer: "L.Trainer", value: float, op: Literal["sum", "max"]) -> float:
    """The sum or the highest of every rank's ``value``: an exchange that all take part in, if there are several."""
    if trainer.world_size == 1:
        return value
    own = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(own, reduce_op=op))


def gathered(trainer: "L.Trainer", part: T) -> list[T]:
    """What every rank has, in the order of ranks: an exchange of Python objects that all take part in."""
    if trainer.world_size == 1:
        return [part]
    parts: list[T | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, part)
    return cast(list[T], parts)


def share(count: int, trainer: "L.Trainer") -> range:
    """Which of ``count`` things are this rank's: as many as the others', in one piece, so that parts can be joined."""
    first, last = (count * rank // trainer.world_size for rank in (trainer.global_rank, trainer.global_rank + 1))
    return range(first, last)


def is_main_process() -> bool:
    """Whether this is rank 0; a process that Lightning, torchrun or SLURM started beside it is not."""
    rank = vars(rank_zero_only).get("rank")  # set when Lightning is loaded, and by its strategies
    if rank is None:
        rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), 0)
    return int(rank) == 0


def leave_group_at_exit() -> None:
    """Close the process group before the interpreter is taken down; for runs that ended well.

    Lightning does so for NCCL only. A gloo thread that still lets go of its last tensor meets an interpreter that is
    being taken down, and the process ends by SIGABRT (-6), whatever its exit code was to be. After a failure nothing
    is closed: that would wait for exchanges that other ranks may never join.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
