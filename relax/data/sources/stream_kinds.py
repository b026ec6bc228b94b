"""What a source is as a stream: its rows from first to last, a row passed over without being parsed. Opens no source.

Fingerprints of content would take a pass over the data; a stream has an ``identity`` instead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from relax.data.examples import Row
from relax.data.sources.compressed import opened
from relax.data.sources.dataset_rows import stream_rows
from relax.data.sources.fingerprints import SourceRows, Stamped, digest
from relax.data.sources.line_formats import LAYOUTS, Parse, Record
from relax.data.sources.parquet_file import ParquetFile, RowGroup
from relax.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

Placed: TypeAlias = tuple[str, Row]  # the row, and before it where it is from, as `Located.place` says it
Unread: TypeAlias = Callable[[], Placed]  # the call reads and parses it


@runtime_checkable
class RowStream(Protocol):
    """The rows of a source, one after another, in the same order every time. Picklable."""

    @property
    def identity(self) -> str:
        """Other data, other text: of file names and sizes, or of a data set's name, split and configuration."""
        ...

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """(place, row) of one epoch, from row ``skip`` (counted from 0) on.

        Raises:
            UserError: a row that cannot be read; its place is in the message.
        """
        ...


class Source(RowStream, Protocol):
    """A stream that knows which rows there are before it reads them."""

    def unread(self) -> Iterator[Unread]:
        """All rows of an epoch, unread."""
        ...


@dataclass(frozen=True)
class LineStream:
    """A .jsonl, .csv or .txt file (``kind``), perhaps with .gz behind it."""

    file: Stamped
    kind: str

    @property
    def identity(self) -> str:
        """Of the file's name and size."""
        return self.file.identity

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """As :class:`RowStream`."""
        return _read_behind(self, skip)

    def unread(self) -> Iterator[Unread]:
        """As :class:`Source`."""
        self.file.check()
        with opened(self.file.path) as file:
            records, parse = LAYOUTS[self.kind](file, self.file.name)
            for record in records:
                yield partial(self._read, record, parse)

    def _read(self, record: Record, parse: Parse) -> Placed:
        place = f"{self.file.name}:{record.line}"
        try:
            return place, parse(record.raw)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None


@dataclass(frozen=True)
class ParquetStream:
    """A .parquet file; of row groups that are skipped nothing is read."""

    rows: ParquetFile

    @property
    def identity(self) -> str:
        """Of the file's name and size."""
        return self.rows.file.identity

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """As :class:`RowStream`."""
        return _read_behind(self, skip)

    def unread(self) -> Iterator[Unread]:
        """As :class:`Source`."""
        return (partial(self._read, at, *found) for at, found in enumerate(self.rows.unread()))

    def _read(self, at: int, group: RowGroup, index: int) -> Placed:
        return self.rows.place(at), group.row(index)


@dataclass(frozen=True)
class PositionStream:
    """Rows that are in memory, or mapped into it: of a .json file, or of a folder saved by ``datasets``."""

    rows: SourceRows
    identity: str

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """As :class:`RowStream`."""
        return _read_behind(self, skip)

    def unread(self) -> Iterator[Unread]:
        """As :class:`Source`."""
        return (partial(self._read, index) for index in range(len(self.rows)))

    def _read(self, index: int) -> Placed:
        return self.rows.place(index), self.rows[index]


@dataclass(frozen=True)
class LibraryStream:
    """A streaming data set of ``datasets``: alone it skips as the library does, in a chain it reads and drops rows."""

    dataset: "IterableDataset"
    name: str
    identity: str

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """As :class:`RowStream`."""
        return stream_rows(self.dataset, self.name, skip)

    def unread(self) -> Iterator[Unread]:
        """As :class:`Source`."""
        return (partial(_same, placed) for placed in self.read())


@dataclass(frozen=True)
class Chained:
    """Sources, one behind the other."""

    sources: tuple[Source, ...]

    @property
    def identity(self) -> str:
        """Of the sources' identities, in order."""
        return digest("chained", *(source.identity for source in self.sources))

    def read(self, skip: int = 0) -> Iterator[Placed]:
        """As :class:`RowStream`."""
        return _read_behind(self, skip)

    def unread(self) -> Iterator[Unread]:
        """As :class:`Source`."""
        return chain.from_iterable(source.unread() for source in self.sources)


def _read_behind(source: Source, skip: int) -> Iterator[Placed]:
    return (read() for read in islice(source.unread(), skip, None))


def _same(placed: Placed) -> Placed:
    return placed
