"""Best-fit-decreasing bin packing of row lengths. Pure arithmetic: knows neither rows nor batches."""

import heapq

import numpy as np
import numpy.typing as npt

from relax.errors import UserError

Int64 = npt.NDArray[np.int64]


def best_fit_decreasing(lengths: Int64, capacity: int) -> Int64:
    """Which bin each row goes to, from the longest row to the shortest, each into the fullest bin that has room.

    Rows of equal length are taken in the order given. The bins are those of the textbook algorithm (Johnson 1974: at
    most 11/9 of the fewest possible, plus one), found for all rows of one length and all bins of one free space at a
    time: a million rows take a fraction of a second.

    Args:
        lengths: [R], tokens, each from 1 to ``capacity``.
        capacity: tokens of a bin.

    Returns:
        [R], bin numbers from 0 on without gaps.

    Raises:
        UserError: a row is longer than a bin.
    """
    if not len(lengths):
        return np.empty(0, dtype=np.int64)
    if lengths.max() > capacity:
        row = int(lengths.argmax())
        raise UserError(f"row {row + 1} has {lengths[row]} tokens, more than the {capacity} that are packed together")
    bins = np.empty(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    sizes, starts = np.unique(-lengths[order], return_index=True)
    open_bins = _OpenBins(capacity)
    for size, rows in zip(-sizes, np.split(order, starts[1:]), strict=True):
        while len(rows):
            space, found = open_bins.take(int(size), len(rows))
            each = space // int(size)  # the bin just filled stays the best fit while it has room
            bins[rows[: len(found) * each]] = np.repeat(found, each)[: len(rows)]
            open_bins.put(space - each * int(size), found[:-1])
            in_last = min(each, len(rows) - (len(found) - 1) * each)
            open_bins.put(space - in_last * int(size), found[-1:])
            rows = rows[len(found) * each :]
    return bins


class _OpenBins:
    """Bins by free space, those of one space interchangeable; the spaces in use are the bits of one integer."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        self.by_space: dict[int, list[Int64]] = {}
        self.spaces = 0

    def take(self, size: int, rows: int) -> tuple[int, Int64]:
        """The least space that holds ``size``, and as many bins of it, new ones if need be, as ``rows`` rows fill."""
        fitting = self.spaces >> size
        if not fitting:
            wanted = -(-rows // (self.capacity // size))
            self.count += wanted
            return self.capacity, np.arange(self.count - wanted, self.count)
        space = size + (fitting & -fitting).bit_length() - 1
        stack = self.by_space[space]
        found, wanted = stack.pop(), -(-rows // (space // size))
        if len(found) > wanted:
            stack.append(found[wanted:])
        if not stack:
            self.spaces ^= 1 << space
        return space, found[:wanted]

    def put(self, space: int, bins: Int64) -> None:
        """Return bins with ``space`` left; full ones are done with."""
        if space and len(bins):
            self.by_space.setdefault(space, []).append(bins)
            self.spaces |= 1 << space


def balanced(lengths: Int64, parts: int) -> list[list[int]]:
    """Rows spread over ``parts`` so that the sums are alike: longest first, each to the least full (Graham 1969).

    Args:
        lengths: [R], tokens.
        parts: how many; some stay empty where there are fewer rows.

    Returns:
        Row numbers of each part.
    """
    spread: list[list[int]] = [[] for _ in range(parts)]
    sums = [(0, part) for part in range(parts)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        total, least = sums[0]
        spread[least].append(row)
        heapq.heapreplace(sums, (total + int(lengths[row]), least))
    return spread
