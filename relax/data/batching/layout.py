"""How an optimizer step is cut into micro-batches: over ranks and accumulation steps, by count or by tokens.

The cut changes speed and memory, never the gradient. Legend: S sequences of a step, M its micro-batches on all ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from relax.data.batching.packing import balanced, best_fit_decreasing
from relax.data.batching.planning import Step
from relax.errors import UserError

Int64 = npt.NDArray[np.int64]
Cut = list[list[list[int]]]
"""[accumulation step][rank] -> samples."""


@dataclass(frozen=True)
class Layout:
    """``batch_size`` sequences = world size x accumulation x micro-batch size, or as many micro-batches as fit.

    Args:
        batch_size: sequences of an optimizer step.
        micro_batch_size: sequences of a micro-batch, at most; None where ``max_tokens`` decides.
        accumulate: micro-batches of a step on each rank.
        world_size: ranks.
        max_tokens: tokens of a micro-batch, at most, padding included.
        padded: rows are filled up to the longest of their micro-batch.
    """

    batch_size: int
    micro_batch_size: int | None
    accumulate: int
    world_size: int
    max_tokens: int | None = None
    padded: bool = False

    @classmethod
    def of(cls, batch_size: int, world_size: int, micro_batch_size: int | None, accumulate: int | None) -> "Layout":
        """Derive what is not given.

        Raises:
            UserError: the numbers do not multiply to ``batch_size``.
        """
        if batch_size % world_size:
            raise UserError(
                f"batch_size must be divisible by the number of devices, got {batch_size} over {world_size}; "
                f"try --batch_size={-(-batch_size // world_size) * world_size}"
            )
        share = batch_size // world_size
        if micro_batch_size is None:
            micro_batch_size = share // (accumulate or 1)
        micro_batch_size = min(max(1, micro_batch_size), share)
        if accumulate is None:
            accumulate = share // micro_batch_size
        if micro_batch_size * accumulate != share:
            raise UserError(
                f"batch_size must be devices x accumulate_grad_batches x micro_batch_size, got {batch_size} against "
                f"{world_size} x {accumulate} x {micro_batch_size}; change --micro_batch_size or --batch_size"
            )
        return cls(batch_size, micro_batch_size, accumulate, world_size)

    def holding(self, steps: Iterable[Step], lengths: Int64) -> "Layout":
        """The same with the accumulation under which every one of ``steps`` keeps within ``max_tokens``."""
        assert self.max_tokens is not None, "nothing to keep within"
        most = 1
        for step in steps:
            sizes = _sizes(step, lengths)
            # Longest first to the least full (Graham 1969) ends at most at sum / M + longest.
            if self.padded or sizes.sum() / most + sizes.max() > self.max_tokens:
                most = max(most, len(self._within_budget(sizes, self.max_tokens)))
        return replace(self, accumulate=-(-most // self.world_size))

    def whole(self, step: Step, lengths: Int64) -> "Layout":
        """For a step of another size (a validation is one over all held-out rows), cut in the same way."""
        whole = replace(self, batch_size=len(step.samples))
        if self.max_tokens is not None:
            return whole.holding([step], lengths)
        assert self.micro_batch_size is not None, "count or tokens decide"
        return replace(whole, accumulate=-(-len(step.samples) // (self.world_size * self.micro_batch_size)))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimizer step over all ranks."""
        return self.world_size * self.accumulate

    def cut(self, step: Step, lengths: Int64) -> Cut:
        """[accumulation step][rank] -> samples. A small step may leave micro-batches empty.

        Args:
            step: the samples.
            lengths: [R], tokens of each sample of the data set.
        """
        sizes = _sizes(step, lengths)
        members = step.members()
        parts = [[int(i) for s in part for i in members[s]] for part in self._parts(sizes)]
        # Ranks take turns in who gets the largest, so that none has more to do than another.
        slots = [parts[i : i + self.world_size] for i in range(0, len(parts), self.world_size)]
        return [slot if i % 2 == 0 else slot[::-1] for i, slot in enumerate(slots)]

    def _parts(self, sizes: Int64) -> list[list[int]]:
        """The sequences of each micro-batch, of alike ones next to each other; M of them."""
        if self.max_tokens is not None:
            parts = self._balanced_within_budget(sizes, self.max_tokens)
            parts.sort(key=lambda part: -int(sizes[part].sum()) if part else 0)
            return parts + [[]] * (self.micro_batches - len(parts))
        by_size = np.argsort(-sizes, kind="stable")
        if self.padded:  # neighbours in length waste least
            return [part.tolist() for part in np.array_split(by_size, self.micro_batches)]
        rounds = [by_size[i : i + self.micro_batches] for i in range(0, len(by_size), self.micro_batches)]
        dealt = [part if i % 2 == 0 else part[::-1] for i, part in enumerate(_filled(rounds, self.micro_batches))]
        return [[int(s) for s in part if s >= 0] for part in np.stack(dealt, axis=1)]

    def _within_budget(self, sizes: Int64, budget: int) -> list[list[int]]:
        """As few micro-batches of at most ``budget`` tokens as are found."""
        if not self.padded:
            bins = best_fit_decreasing(sizes, budget)
            return [
                part.tolist() for part in np.split(np.argsort(bins, kind="stable"), np.cumsum(np.bincount(bins))[:-1])
            ]
        parts: list[list[int]] = []
        room = 0
        for s in np.argsort(-sizes, kind="stable").tolist():
            if not room:
                parts.append([])
                room = budget // int(sizes[s])  # the first is the longest: all are filled up to it
            parts[-1].append(s)
            room -= 1
        return parts

    def _balanced_within_budget(self, sizes: Int64, budget: int) -> list[list[int]]:
        """At most M micro-batches within the budget, as alike as is found."""
        if not self.padded:
            parts = balanced(sizes, self.micro_batches)
            alike = max(int(sizes[part].sum()) for part in parts) <= budget
            return parts if alike else self._within_budget(sizes, budget)
        low, high = int(sizes.max()), budget
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if len(self._within_budget(sizes, middle)) <= self.micro_batches else (middle + 1, high)
            )
        return self._within_budget(sizes, high)


def _sizes(step: Step, lengths: Int64) -> Int64:
    """[S], tokens of each sequence."""
    return np.bincount(step.sequences, weights=lengths[step.samples]).astype(np.int64)


def _filled(rounds: list[Int64], width: int) -> list[Int64]:
    """The last round, if it is short, filled up with -1."""
    return [*rounds[:-1], np.pad(rounds[-1], (0, width - len(rounds[-1])), constant_values=-1)]
