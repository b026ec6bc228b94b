"""How much of what is computed are real tokens: padding of padded micro-batches, fullness of packed ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fill:
    """Some or all micro-batches of an epoch, counted in tokens.

    ``slots`` are the places for tokens: rows x longest row of a padded micro-batch; of a packed one its ``capacity``,
    or as many as it has tokens where it has no capacity or is longer than that.
    """

    packed: bool
    capacity: int | None
    micro_batches: int
    """Or packed sequences, where ``sequences`` is set."""
    tokens: int
    slots: int
    largest: int
    """Places of the largest one that are computed, padding counted: what decides about memory."""
    sequences: bool = False

    @classmethod
    def of(
        cls,
        lengths: npt.NDArray[np.int64],
        micro_batches: Sequence[npt.NDArray[np.int64]],
        packed: bool,
        capacity: int | None = None,
        sequences: bool = False,
    ) -> "Fill | None":
        """From the length of each sample and the samples (at least one) of each micro-batch; None without any."""
        if not micro_batches:
            return None
        sizes = np.array([len(batch) for batch in micro_batches])
        starts = np.cumsum(sizes) - sizes
        of_samples = lengths[np.concatenate(micro_batches)]
        real = np.add.reduceat(of_samples, starts)
        computed = real if packed else sizes * np.maximum.reduceat(of_samples, starts)
        slots = np.maximum(real, capacity or 0) if packed else computed
        sums = int(real.sum()), int(slots.sum()), int(computed.max())
        return cls(packed, capacity, len(sizes), *sums, sequences)

    @property
    def share(self) -> float:
        """Real tokens of all slots."""
        return self.tokens / self.slots
