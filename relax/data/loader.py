"""The loader Lightning iterates: a position that survives kill -9, with and without data workers.

Not a ``DataLoader``: Lightning would wrap and reshard it. The order comes from (seed, epoch); the position is counted
where batches leave the loop, so what workers have prefetched does not matter.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from relax.data.batches import Batch, EpochBatches
from relax.errors import UserError


class ResumableLoader:
    """Micro-batches of this rank, epoch after epoch.

    Args:
        batches: the micro-batches of an epoch, given its number.
        epoch: the current epoch (Lightning's, read when iteration begins).
        processed: micro-batches that the training loop has finished in this epoch.
        identity: what must be the same for a saved position to mean the same place (data, seed, layout).
        workers: processes that build batches; 0 builds them in this one.
    """

    def __init__(
        self,
        batches: Callable[[int], EpochBatches],
        *,
        epoch: Callable[[], int],
        processed: Callable[[], int],
        identity: dict[str, Any],
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches, self.epoch, self.processed = batches, epoch, processed
        self.identity, self.workers, self.pin_memory = identity, workers, pin_memory
        self.length = len(batches(0))
        self.started, self.position = -1, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        # A generator: this runs at the first next(), when Lightning's epoch is right after a resume too.
        epoch = self.epoch()
        if epoch != self.started or self.position >= len(self):
            self.started, self.position = epoch, 0
        batches = self.batches(epoch)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.position, len(batches)),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # without its own it would draw from the global one
        )
        for batch in loader:
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position and what they refer to."""
        position = min(self.position, self.processed())
        return {"epoch": self.started, "position": position, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            UserError: the state belongs to other data, another seed or another layout.
        """
        for name, saved in state["identity"].items():
            if saved != self.identity[name]:
                raise UserError(
                    f"a run can only be resumed with the same {name}: the checkpoint has {saved}, "
                    f"this run {self.identity[name]}; restore it, or start a new run in another --output_dir"
                )
        self.started, self.position = state["epoch"], state["position"]
