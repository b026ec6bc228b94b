"""Several sources as one: joined, or mixed in shares of an epoch. Draws no rows: the planner of an epoch does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from relax.data.examples import Row
from relax.data.rows import Mixed, Rows, whole
from relax.data.sources.fingerprints import SourceRows, digest

Int16: TypeAlias = npt.NDArray[np.int16]
Int64: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Joined:
    """The rows of several sources, one source behind the other."""

    sources: tuple[SourceRows, ...]

    @cached_property
    def starts(self) -> Int64:
        """[sources + 1] the position of each one's first row."""
        return np.cumsum([0, *map(len, self.sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int, /) -> Row:
        source, inner = self._find(index)
        return source[inner]

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.sources)

    def place(self, index: int) -> str:
        """As the source of that row says it."""
        source, inner = self._find(index)
        return source.place(inner)

    @cached_property
    def fingerprint(self) -> str:
        """Of the sources' fingerprints, in order."""
        return digest("joined", *(source.fingerprint for source in self.sources))

    def _find(self, index: int) -> tuple[SourceRows, int]:
        index = range(len(self))[index]
        at = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[at], index - int(self.starts[at])


@dataclass(frozen=True)
class Mixture:
    """Joined rows that know of which part they are, and the parts' shares of an epoch (none: every row once)."""

    joined: Joined
    part_names: tuple[str, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.joined)

    def __getitem__(self, index: int, /) -> Row:
        return self.joined[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.joined)

    def place(self, index: int) -> str:
        """As the part of that row says it."""
        return self.joined.place(index)

    @cached_property
    def fingerprint(self) -> str:
        """Of the parts' fingerprints; names and shares change no row, so other shares need no new tokens."""
        return digest("mixture", self.joined.fingerprint)

    def parts_of(self, indices: Int64) -> Int16:
        """Which part each of the rows at ``indices`` belongs to."""
        return (np.searchsorted(self.joined.starts, indices, side="right") - 1).astype(np.int16)


class Parts(NamedTuple):
    """Of what parts rows are."""

    names: tuple[str, ...]
    shares: tuple[float, ...]  # in sum 1, or none: every row once an epoch
    of_rows: Int16  # [R]


def parts(rows: Rows) -> Parts:
    """The parts of ``rows``, seen through subsets of them. Rows that are no mixture are one part named ""."""
    source, indices = whole(rows)
    if isinstance(source, Mixed):
        return Parts(source.part_names, source.shares, source.parts_of(indices))
    return Parts(("",), (), np.zeros(len(indices), dtype=np.int16))


def shares_of(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights, made to sum to 1."""
    return tuple(weight / sum(weights) for weight in weights)
