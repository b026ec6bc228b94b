"""Which rows make each optimizer step of an epoch: a function of (data, seed, epoch, batch size). No tensors, no ranks.

Legend: R rows of the data set, n rows of a step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from relax.data.batching.packing import best_fit_decreasing
from relax.errors import UserError
from relax.seeding import mix

Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

LENGTH_GROUP_STEPS = 32
"""With ``group_by_length``, rows are sorted by length within windows of this many optimizer steps."""


MIXTURE_EPOCHS = 8
"""Epochs of a packed mixture that are looked at to tell how many steps each has."""


class Shared(Protocol):
    """Rows of which each part, if there are several, has a share of an epoch."""

    def __len__(self) -> int: ...

    @property
    def parts(self) -> Int16 | None:
        """[R]; which part of a mixture each row is of."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """One a part."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each part in an epoch; empty: every row once."""


class Planned(Shared, Protocol):
    """What batches are made of: tokenized rows, or pairs of them. R of them."""

    def __getitem__(self, index: int, /) -> Any:
        """What is collated."""

    @property
    def lengths(self) -> Int64:
        """[R], tokens of each, as far as they count for a micro-batch."""

    @property
    def num_targets(self) -> Int64:
        """[R], training targets of each."""

    @property
    def row_weights(self) -> Float32 | None:
        """[R]; None: all 1."""

    @property
    def source_rows(self) -> Int64:
        """[R], where each stood in the source, counted from 0."""


class Step(NamedTuple):
    """The samples of an optimizer step, and which of them are packed into one sequence, if any are."""

    samples: Int64
    """[n], positions in the data set; a mixture may repeat one."""
    sequences: Int64
    """[n], the number of the sequence that each sample is part of; each its own, where nothing is packed."""

    def members(self) -> list[Int64]:
        """The samples of each sequence."""
        order = np.argsort(self.sequences, kind="stable")
        return np.split(self.samples[order], np.cumsum(np.bincount(self.sequences))[:-1])


@dataclass(frozen=True)
class Batching:
    """What makes an optimizer step.

    Args:
        batch_size: sequences of a step, over all devices.
        seed: of the order.
        group_by_length: put rows of like length into the same step.
        packing_length: pack rows into sequences of at most so many tokens, which ``batch_size`` then counts.
    """

    batch_size: int
    seed: int = 0
    group_by_length: bool = False
    packing_length: int | None = None


class Plan:
    """The optimizer steps of every epoch of a data set; every epoch has as many.

    Raises:
        UserError: a part of a mixture has no row left, or a share too small for one; a row too long to be packed.
    """

    def __init__(self, data: Planned, batching: Batching) -> None:
        self.data, self.batching = data, batching
        check_shares(data)
        if batching.packing_length is not None and data.lengths.max() > batching.packing_length:
            raise UserError(
                f"--packing_length={batching.packing_length} must hold the longest row, which has "
                f"{data.lengths.max()} tokens; raise it or lower --max_length"
            )

    def steps(self, epoch: int) -> list[Step]:
        """The steps in order; the last one may be smaller, and no row is left out."""
        generator, size = np.random.default_rng(mix(self.batching.seed, "order", epoch)), self.batching.batch_size
        order = epoch_order(self.data, self.batching.seed, epoch, generator)
        if self.batching.packing_length is not None:
            return self._packed(order, generator)
        if self.batching.group_by_length:
            order = _grouped(order, self.data.lengths, size * LENGTH_GROUP_STEPS)
        cuts = [order[i : i + size] for i in range(0, len(order), size)]
        if self.batching.group_by_length:
            cuts = [cuts[i] for i in generator.permutation(len(cuts))]
        return [Step(samples, np.arange(len(samples))) for samples in cuts]

    @cached_property
    def num_steps(self) -> int:
        """Optimizer steps of an epoch."""
        sequences = len(self.data)
        if self.batching.packing_length is not None:
            # The epochs of a mixture differ a little: the fullest of the first ones decides.
            epochs = range(MIXTURE_EPOCHS if self.data.shares else 1)
            orders = (epoch_order(self.data, self.batching.seed, e, np.random.default_rng(0)) for e in epochs)
            sequences = max(len(self._bins(order)) for order in orders)
        return -(-sequences // self.batching.batch_size)

    def _bins(self, order: Int64) -> list[Int64]:
        """The rows of each packed sequence; rows of equal length change places with their order."""
        assert self.batching.packing_length is not None, "nothing is packed"
        bins = best_fit_decreasing(self.data.lengths[order], self.batching.packing_length)
        return np.split(order[np.argsort(bins, kind="stable")], np.cumsum(np.bincount(bins))[:-1])

    def _packed(self, order: Int64, generator: np.random.Generator) -> list[Step]:
        bins, size = self._bins(order), self.batching.batch_size
        if self.data.shares:  # the epochs of a mixture differ in their rows and so in their bins, not in their steps
            while len(bins) < self.num_steps:
                fullest = max(range(len(bins)), key=lambda b: len(bins[b]))
                bins[fullest : fullest + 1] = np.array_split(bins[fullest], 2)
            cuts = np.array_split(generator.permutation(len(bins)), self.num_steps)
        else:
            shuffled = generator.permutation(len(bins))
            cuts = [shuffled[i : i + size] for i in range(0, len(bins), size)]
        return [_packed_step([bins[b] for b in cut]) for cut in cuts]


def check_shares(data: Shared) -> None:
    """Refuse a mixture of which a part would give no row.

    Raises:
        UserError: such a part.
    """
    if not data.shares:
        return
    assert data.parts is not None, "a mixture knows the part of each row"
    for part, due in enumerate(apportion(len(data), data.shares)):
        kept = int((data.parts == part).sum())
        if not kept or not due:
            raise UserError(
                f"{data.part_names[part]}: {kept} rows to train on and a share of {data.shares[part]:.2g}, which is "
                f"{due} rows of an epoch; both must be at least 1: change --dataset"
            )


def epoch_order(data: Shared, seed: int, epoch: int, generator: np.random.Generator) -> Int64:
    """The rows of an epoch, shuffled: each once, or of a mixture with shares as many of each part as it is due.

    A part is walked through in passes, over all epochs: no row comes again before each has come once.
    """
    if not data.shares:
        return generator.permutation(len(data))
    assert data.parts is not None, "a mixture knows the part of each row"
    due = apportion(len(data), data.shares)
    drawn = [_walk(np.flatnonzero(data.parts == part), n, epoch, (seed, part)) for part, n in enumerate(due)]
    return generator.permutation(np.concatenate(drawn))


def apportion(total: int, shares: tuple[float, ...]) -> list[int]:
    """``total`` by shares that sum to 1, in whole numbers that sum to it (largest remainders)."""
    exact = np.array(shares) * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return [int(count) for count in counts]


def _walk(rows: Int64, count: int, epoch: int, key: tuple[int, int]) -> Int64:
    """The next ``count`` rows in an endless sequence of shuffled passes, from where the epochs before have come to."""
    first, last = divmod(epoch * count, len(rows)), divmod((epoch + 1) * count - 1, len(rows))
    passes = [np.random.default_rng(mix("pass", *key, p)).permutation(rows) for p in range(first[0], last[0] + 1)]
    return np.concatenate(passes)[first[1] : first[1] + count]


def _grouped(order: Int64, lengths: Int64, window: int) -> Int64:
    windows = [order[i : i + window] for i in range(0, len(order), window)]
    return np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])


def _packed_step(sequences: list[Int64]) -> Step:
    return Step(np.concatenate(sequences), np.repeat(np.arange(len(sequences)), [len(rows) for rows in sequences]))
