"""Counts of whole numbers in a few bins with round borders, and their bars for a log. Draws nothing but text."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

BINS = 8
BAR_WIDTH = 32
_LONG_TAIL = 8  # the highest value over the median, from which on bins of equal width would hide the median
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Histogram:
    """``counts[i]`` values lie in ``[edges[i], edges[i + 1])``."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: npt.NDArray[np.int64]) -> "Histogram":
        """Of at least one whole number, all positive: about ``BINS`` bins, equal or, for a long tail, ever wider.

        The outer edges are the lowest value and one above the highest.
        """
        low, high = int(values.min()), int(values.max())
        long_tail = high > _LONG_TAIL * float(np.median(values))
        _, *inner, _ = _growing(low, high) if long_tail else _even(low, high)
        edges = [low, *inner, high + 1]
        counts, _ = np.histogram(values, edges)
        return cls(tuple(edges), tuple(counts.tolist()))

    @property
    def labels(self) -> list[str]:
        """``8-15`` for each bin; ``8`` for one that holds a single number."""
        return [f"{low:,}" if high == low + 1 else f"{low:,}-{high - 1:,}" for low, high in pairwise(self.edges)]

    def lines(self) -> list[str]:
        """One a bin: label, bar, count, share. A bin that is not empty shows at least a sliver."""
        highest, total = max(self.counts), sum(self.counts)
        labels, figures = self.labels, [f"{count:,}" for count in self.counts]
        left, right = max(map(len, labels)), max(map(len, figures))
        return [
            f"{label:>{left}}  {_bar(count / highest):<{BAR_WIDTH}} {figure:>{right}}  {count / total:6.1%}"
            for label, count, figure in zip(labels, self.counts, figures, strict=True)
        ]


def _bar(share: float) -> str:
    whole, eighths = divmod(max(round(share * BAR_WIDTH * 8), share > 0), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


def _even(low: int, high: int) -> list[int]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    needed = (high - low + 1) / BINS
    step = next(unit * 10**power for power in range(20) for unit in (1, 2, 5) if unit * 10**power >= needed)
    first = low // step * step
    return [*range(first, high + step + 1, step)]


def _growing(low: int, high: int) -> list[int]:
    """Powers of two, or of four where two would make twice as many bins as wanted."""
    first, last = low.bit_length() - 1, high.bit_length()
    step = 1 if last - first <= 2 * BINS - 4 else 2
    return [2**power for power in range(first, last + step, step)]
