"""Which reader a local file goes to, by its name. Not a source: no hub, no folders, no splits."""

from pathlib import Path

from relax.data.sources.compressed import opened
from relax.data.sources.fingerprints import SourceRows
from relax.data.sources.indexed_file import IndexedFile
from relax.data.sources.json_file import read_json_file
from relax.data.sources.line_formats import LAYOUTS
from relax.data.sources.parquet_file import open_parquet
from relax.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
_PACKED = tuple(f"{suffix}.gz" for suffix in SUFFIXES if suffix != ".parquet")


def read_file(path: Path) -> SourceRows:
    """The rows of a local file, by its suffix: one of :data:`SUFFIXES`, all but .parquet also with .gz behind it.

    Raises:
        UserError: wrong suffix, empty, unreadable or broken file, or no row in it; the message names the file.
            What is wrong with one row of a .jsonl, .csv or .txt shows when that row is read.
    """
    kind = file_kind(path)
    if kind in LAYOUTS:
        rows: SourceRows = IndexedFile(path, kind)
    else:
        rows = read_json_file(path) if kind == ".json" else open_parquet(path)
    if not len(rows):
        raise UserError(f"{path}: the file holds no rows")
    return rows


def file_kind(path: Path) -> str:
    """Which of :data:`SUFFIXES` the file's name has, behind it perhaps .gz; looks whether it can be read.

    Raises:
        UserError: none of them; the file is empty or cannot be read.
    """
    name = path.name.lower()
    if not name.endswith((*SUFFIXES, *_PACKED)):
        known = f"{', '.join(SUFFIXES)} (all but .parquet may have .gz behind it)"
        raise UserError(f"{path}: a data file ends in {known}, got {path.suffix or 'no suffix'!r}")
    with opened(path):
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes)")
    return Path(name.removesuffix(".gz")).suffix
