"""The loader Lightning iterates: a position that survives kill -9, with and without data workers.

Not a ``DataLoader``: Lightning would wrap and reshard it. The order comes from (seed, epoch); the position is counted
where batches leave the loop, so what workers have prefetched does not matter.

The trainer keeps the position in its checkpoints. Lightning would do so itself for a loader with ``state_dict`` and
``load_state_dict``, but drops it when a loader is built before the checkpoint is read (to count the steps of a
schedule) and when the checkpoint ends an epoch.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from relax.data.batching.batches import Batch
from relax.errors import TrainingStopped, UserError


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group, and batches are needed until the step at hand ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class Bookmark(TypedDict):
    """A place in the data: micro-batches done in an epoch, rows read for them if it is a stream, and what data."""

    epoch: int
    position: int
    rows_read: int
    identity: dict[str, Any]


class BatchSource(Protocol):
    """The micro-batches of this rank, of every epoch."""

    @property
    def micro_batches(self) -> int | None:
        """Of an epoch; None where that is not known before its end."""
        ...

    def open(self, epoch: int, position: int, rows_read: int) -> Dataset[Any]:
        """The micro-batches of an epoch from ``position`` on; an error among them is raised when it is reached."""
        ...


class ResumableLoader:
    """Micro-batches of this rank, epoch after epoch.

    Args:
        source: the micro-batches.
        epoch: the current epoch (Lightning's, read when iteration begins).
        processed: micro-batches that the training loop has finished in this epoch.
        resume: the ``bookmark`` to start from, if any; read when iteration begins.
        identity: what must be the same for a bookmark to mean the same place (data, seed, layout).
        workers: processes that build batches; 0 builds them in this one.
    """

    def __init__(
        self,
        source: BatchSource,
        *,
        epoch: Callable[[], int],
        processed: Callable[[], int],
        resume: Callable[[], Bookmark | None],
        identity: Mapping[str, Any],
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.source, self.epoch, self.processed, self.resume = source, epoch, processed, resume
        self.identity, self.workers, self.pin_memory = identity, workers, pin_memory
        self.started, self.position = -1, 0
        self.rows_read: dict[int, int] = {}  # position -> rows of a stream read up to there, of what is under way

    def __len__(self) -> int:
        length = self.source.micro_batches
        if length is None:
            raise TypeError("a stream has no length")  # Lightning's own way of asking
        return length

    def __iter__(self) -> Iterator[Batch]:
        # A generator: this runs at the first next(), when Lightning's epoch is right after a resume too.
        epoch, bookmark = self.epoch(), self.resume()
        self.started, self.position, self.rows_read = epoch, 0, {0: 0}
        if bookmark is not None and bookmark["epoch"] == epoch:
            self.position = bookmark["position"]
            self.rows_read = {self.position: bookmark["rows_read"]}
        batches = self.source.open(epoch, self.position, self.rows_read[self.position])
        loader = DataLoader(
            batches,
            batch_size=None,
            shuffle=False,
            # A stream is read by one: several would each have to read all of it.
            num_workers=min(1, self.workers) if isinstance(batches, IterableDataset) else self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # without its own it would draw from the global one
        )
        for batch in loader:
            if isinstance(batch, UserError | TrainingStopped):
                raise batch
            self.position += 1
            self.rows_read[self.position] = batch.stream_position
            yield batch
            done = self.processed()
            self.rows_read = {at: rows for at, rows in self.rows_read.items() if at >= done}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bookmark lies elsewhere. Without these two methods Lightning warns that it cannot resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""

    def bookmark(self) -> Bookmark:
        """Where the training loop is, for a checkpoint."""
        position = min(self.position, self.processed())
        rows_read = self.rows_read.get(position, 0)
        return {"epoch": self.started, "position": position, "rows_read": rows_read, "identity": dict(self.identity)}

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
