"""A text file as rows: one pass notes where every record begins, a row is read and parsed when it is asked for.

Costs 16 bytes of memory a row, whatever the rows hold. What is wrong with a row shows when that row is read.
"""

from array import array
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from relax.data.examples import Row
from relax.data.sources.compressed import opened, unpacked
from relax.data.sources.fingerprints import Stamped, content_digest
from relax.data.sources.line_formats import LAYOUTS
from relax.errors import UserError

_BLOCK_BYTES = 1 << 17


class IndexedFile:
    """The rows of a .jsonl, .csv or .txt file (``kind``), or of such a file with .gz behind it.

    Raises:
        UserError: unreadable file, or (CSV only) one that cannot be cut into records.
    """

    def __init__(self, path: Path, kind: str):
        self.kind = kind
        self.file = Stamped.now(unpacked(path), str(path))
        with opened(self.file.path) as file:
            layout = LAYOUTS[kind](file, str(path))
            self.parse = layout.parse
            starts, lines = array("q"), array("q")
            for record in layout.records:
                starts.append(record.start)
                lines.append(record.line)
        starts.append(self.file.size_bytes)
        self.starts = np.frombuffer(starts, dtype=np.int64)  # [R + 1]; row i is starts[i]:starts[i + 1], blanks behind
        self.lines = np.frombuffer(lines, dtype=np.int64)  # [R]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int, /) -> Row:
        index = range(len(self))[index]
        start, end = self.starts[index : index + 2].tolist()
        return self._row(index, _read(self.file, start, end))

    def __iter__(self) -> Iterator[Row]:
        self.file.check()
        with opened(self.file.path) as file:
            file.seek(self.starts[0])
            for index, size in enumerate(np.diff(self.starts)):
                yield self._row(index, file.read(size))

    def place(self, index: int) -> str:
        """``rows.jsonl:17``."""
        return f"{self.file.name}:{self.lines[index]}"

    @cached_property
    def fingerprint(self) -> str:
        """Of the (unpacked) bytes; takes a pass over the file."""
        self.file.check()
        with opened(self.file.path) as file:
            return content_digest(file, self.kind)

    def _row(self, index: int, raw: bytes) -> Row:
        try:
            return self.parse(raw)
        except UserError as error:
            raise UserError(f"{self.place(index)}: {error}") from None


def _read(file: Stamped, start: int, end: int) -> bytes:
    """Some bytes of a file that does not stay open: a pattern may fit thousands, and forks would share its position."""
    first = start // _BLOCK_BYTES
    blocks = b"".join(_block(file, number) for number in range(first, (end - 1) // _BLOCK_BYTES + 1))
    return blocks[start - first * _BLOCK_BYTES : end - first * _BLOCK_BYTES]


@lru_cache(maxsize=16)
def _block(file: Stamped, number: int) -> bytes:
    """The rows asked for in order lie in one block after another; of ten thousand calls, a hundred open the file."""
    file.check()
    with opened(file.path) as opened_file:
        opened_file.seek(number * _BLOCK_BYTES)
        return opened_file.read(_BLOCK_BYTES)
