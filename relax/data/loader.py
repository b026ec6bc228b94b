"""The loader Lightning iterates: a position that survives kill -9, with and without data workers.

Not a ``DataLoader``: Lightning would wrap and reshard it. The order comes from (seed, epoch); the position is counted
where batches leave the loop, so what workers have prefetched does not matter.

The trainer keeps the position in its checkpoints. Lightning would do so itself for a loader with ``state_dict`` and
``load_state_dict``, but drops it when a loader is built before the checkpoint is read (to count the steps of a
schedule) and when the checkpoint ends an epoch.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader

from relax.data.batches import Batch, EpochBatches
from relax.errors import UserError


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group, and batches are needed until the step at hand ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class Bookmark(TypedDict):
    """A place in the data: micro-batches done in an epoch, and what data that means."""

    epoch: int
    position: int
    identity: dict[str, Any]


class ResumableLoader:
    """Micro-batches of this rank, epoch after epoch.

    Args:
        batches: the micro-batches of an epoch, given its number.
        epoch: the current epoch (Lightning's, read when iteration begins).
        processed: micro-batches that the training loop has finished in this epoch.
        resume: the ``bookmark`` to start from, if any; read when iteration begins.
        identity: what must be the same for a bookmark to mean the same place (data, seed, layout).
        workers: processes that build batches; 0 builds them in this one.
    """

    def __init__(
        self,
        batches: Callable[[int], EpochBatches],
        *,
        epoch: Callable[[], int],
        processed: Callable[[], int],
        resume: Callable[[], Bookmark | None],
        identity: Mapping[str, Any],
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches, self.epoch, self.processed, self.resume = batches, epoch, processed, resume
        self.identity, self.workers, self.pin_memory = identity, workers, pin_memory
        self.length = len(batches(0))
        self.started, self.position = -1, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        # A generator: this runs at the first next(), when Lightning's epoch is right after a resume too.
        epoch, bookmark = self.epoch(), self.resume()
        self.started, self.position = epoch, 0
        if bookmark is not None and bookmark["epoch"] == epoch:
            self.position = bookmark["position"]
        batches = self.batches(epoch)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.position, len(batches)),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # without its own it would draw from the global one
        )
        for batch in loader:
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bookmark lies elsewhere. Without these two methods Lightning warns that it cannot resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""

    def bookmark(self) -> Bookmark:
        """Where the training loop is, for a checkpoint."""
        position = min(self.position, self.processed())
        return {"epoch": self.started, "position": position, "identity": dict(self.identity)}

    def check(self, bookmark: Bookmark) -> None:
        """Refuse a bookmark of other data, another seed or another layout.

        Raises:
            UserError: names what differs.
        """
        for name, saved in bookmark["identity"].items():
            if saved != self.identity[name]:
                raise UserError(
                    f"a run can only be resumed with the same {name}: the checkpoint has {saved}, "
                    f"this run {self.identity[name]}; restore it, or start a new run in another --output_dir"
                )
