"""A Parquet file as rows: one row group in memory, decoded a thousand rows at a time. For reading in order.

A row out of order costs the decoding of its thousand, and of its row group where that is another one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from relax.data.compressed import opened
from relax.data.examples import Row
from relax.data.fingerprints import Stamped, content_digest
from relax.data.json_text import first_line
from relax.errors import UserError

if TYPE_CHECKING:
    from pyarrow import parquet  # type: ignore[import-untyped]

_ROWS_DECODED = 1000
_Chunk: TypeAlias = tuple[int, int]  # row group, and which thousand of it


class ParquetFile:
    """The rows of a .parquet file.

    Raises:
        UserError: it is not a readable Parquet file; also from a later read, if it is damaged further in.
    """

    _table: tuple[int, Any]  # the row group in memory, and its content
    _decoded: tuple[_Chunk, list[Row]]

    def __init__(self, path: Path):
        self.file = Stamped.now(path)
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])  # [row groups + 1]
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int, /) -> Row:
        index = range(len(self))[index]
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        chunk, offset = divmod(index - int(self.starts[group]), _ROWS_DECODED)
        if self._decoded[0] != (group, chunk):
            self._decoded = (group, chunk), self._decode(group, chunk)
        return self._decoded[1][offset]

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def place(self, index: int) -> str:
        """``rows.parquet:row 17``."""
        return f"{self.file.name}:row {index + 1}"

    @cached_property
    def fingerprint(self) -> str:
        """Of the file's bytes; takes a pass over it."""
        self.file.check()
        with opened(self.file.path) as file:
            return content_digest(file, ".parquet")

    def _decode(self, group: int, chunk: int) -> list[Row]:
        with self._readable():
            if self._table[0] != group:
                self._table = group, self._parquet.read_row_group(group, use_threads=False)  # threads die in a fork
            rows: list[Row] = self._table[1].slice(chunk * _ROWS_DECODED, _ROWS_DECODED).to_pylist()
        return rows

    @cached_property
    def _parquet(self) -> "parquet.ParquetFile":
        from pyarrow import parquet

        self.file.check()
        with self._readable():
            return parquet.ParquetFile(self.file.path)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.file.name}: not a readable Parquet file ({first_line(error)})") from None

    def _forget(self) -> None:
        self._table = -1, None
        self._decoded = (-1, -1), []

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file and what was read from it."""
        return {"file": self.file, "starts": self.starts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()
