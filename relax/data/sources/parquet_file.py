"""A Parquet file as rows: one row group in memory, decoded a thousand rows at a time. For reading in order.

A row out of order costs the decoding of its thousand, and of its row group where that is not one of the last two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from relax.data.examples import Row
from relax.data.sources.columnar import as_written
from relax.data.sources.compressed import opened
from relax.data.sources.fingerprints import Stamped, content_digest
from relax.data.sources.json_text import first_line
from relax.errors import UserError

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

_ROWS_DECODED = 1000


class RowGroup:
    """A part of a Parquet file that is read as one; nothing of it before the first row is asked for."""

    def __init__(self, file: Stamped, number: int, first: int) -> None:
        self.file, self.number = file, number
        self.first = first  # where its first row stands in the file, counted from 0
        self._decoded: tuple[int, list[Row]] = -1, []  # which thousand, and its rows

    def row(self, index: int) -> Row:
        """Row ``index`` of the group.

        Raises:
            UserError: the file is damaged, or has changed; one of the thousand cannot be decoded.
        """
        chunk, at = divmod(index, _ROWS_DECODED)
        if self._decoded[0] != chunk:
            with _readable(self.file):
                table = self._table.slice(chunk * _ROWS_DECODED, _ROWS_DECODED)
            self._decoded = chunk, self._decode(table, chunk * _ROWS_DECODED)
        return self._decoded[1][at]

    def _decode(self, table: "pyarrow.Table", start: int) -> list[Row]:
        """The rows of a piece that begins at row ``start`` of the group."""
        try:
            rows: list[Row] = [as_written(row) for row in table.to_pylist()]
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python has no name for
            if table.num_rows == 1:
                place = f"{self.file.name}:row {self.first + start + 1}"
                raise UserError(f"{place}: a cell cannot be decoded ({first_line(error)})") from None
            return [row for at in range(table.num_rows) for row in self._decode(table.slice(at, 1), start + at)]
        return rows

    @cached_property
    def _table(self) -> "pyarrow.Table":
        self.file.check()
        return _open(self.file).read_row_group(self.number, use_threads=False)  # its threads do not live on in a fork


@dataclass(frozen=True, eq=False)
class ParquetFile:
    """The rows of a .parquet file. No file stays open: a pattern may fit thousands."""

    file: Stamped
    starts: npt.NDArray[np.int64]  # [row groups + 1] the first row of each

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int, /) -> Row:
        index = range(len(self))[index]
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        first = int(self.starts[group])
        return _recent_group(self.file, group, first).row(index - first)

    def __iter__(self) -> Iterator[Row]:
        return (group.row(index) for group, index in self.unread())

    def unread(self) -> Iterator[tuple[RowGroup, int]]:
        """Of each row in order: its group, and which row of that group it is."""
        for number, size in enumerate(np.diff(self.starts)):
            group = RowGroup(self.file, number, int(self.starts[number]))
            for index in range(size):
                yield group, index

    def place(self, index: int) -> str:
        """``rows.parquet:row 17``."""
        return f"{self.file.name}:row {index + 1}"

    @cached_property
    def fingerprint(self) -> str:
        """Of the file's bytes; takes a pass over it."""
        self.file.check()
        with opened(self.file.path) as file:
            return content_digest(file, ".parquet")


def open_parquet(path: Path) -> ParquetFile:
    """Read what the file says of itself; its rows are read later.

    Raises:
        UserError: it is not a Parquet file, or not a whole one, or two of its columns have one name.
    """
    file = Stamped.now(path)
    with _readable(file):
        opened_file = _open(file)
        about, columns = opened_file.metadata, opened_file.schema_arrow.names
    if len({*columns}) < len(columns):
        raise UserError(f"{path}: the file must name each column once, got {columns}")
    sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    return ParquetFile(file, np.cumsum([0, *sizes]))


@lru_cache(maxsize=2)
def _recent_group(file: Stamped, number: int, first: int) -> RowGroup:
    return RowGroup(file, number, first)


def _open(file: Stamped) -> "parquet.ParquetFile":
    from pyarrow import parquet

    return parquet.ParquetFile(file.path)


@contextmanager
def _readable(file: Stamped) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file.name}: not a readable Parquet file ({first_line(error)})") from None
