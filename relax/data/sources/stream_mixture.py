"""Streams mixed in shares: whose turn it is, is a function of how many rows came before. No randomness, no buffer."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from relax.data.sources.fingerprints import digest
from relax.data.sources.stream_kinds import Placed, RowStream


@dataclass(frozen=True)
class Blended:
    """Streams in the shares given (in sum 1). An epoch ends when a stream whose turn it is has no row left.

    So the others' last rows are not read: choose shares like the sizes where every row matters.
    """

    streams: tuple[RowStream, ...]
    shares: tuple[float, ...]

    @property
    def identity(self) -> str:
        """Of the streams' identities and the shares."""
        return digest("blended", *(stream.identity for stream in self.streams), *map(repr, self.shares))

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """As :class:`relax.data.sources.stream_kinds.RowStream`."""
        taken = Counter(islice(turns(self.shares), skip))
        readers = [stream.read(taken[number]) for number, stream in enumerate(self.streams)]
        for turn in islice(turns(self.shares), skip, None):
            placed = next(readers[turn], None)
            if placed is None:
                return
            yield placed


def turns(shares: Sequence[float]) -> Iterator[int]:
    """Which stream gives row 0, 1, 2, ...: the one that is furthest behind its share, the first of equals.

    After n rows every stream has given its share of them to within one row (two streams; with more, almost).
    """
    given = [0] * len(shares)
    for rows in count(1):
        behind = [share * rows - past for share, past in zip(shares, given, strict=True)]
        turn = behind.index(max(behind))
        given[turn] += 1
        yield turn
