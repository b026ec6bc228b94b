"""Opening a source as a stream, for data that is not to be indexed or does not fit: no length, no positions.

A stream reads on behind any number of rows, so a resumed run needs to remember only a count.
"""

from pathlib import Path

from relax.data.sources.dataset_rows import DatasetRows, Loaded, open_folder, open_hub
from relax.data.sources.files import file_kind
from relax.data.sources.fingerprints import Stamped, digest
from relax.data.sources.json_file import read_json_file
from relax.data.sources.line_formats import LAYOUTS
from relax.data.sources.loading import check_file_split, weighted_parts
from relax.data.sources.mixture import shares_of
from relax.data.sources.names import Files, Folder, find
from relax.data.sources.parquet_file import open_parquet
from relax.data.sources.stream_kinds import (
    Chained,
    LibraryStream,
    LineStream,
    ParquetStream,
    PositionStream,
    RowStream,
    Source,
)
from relax.data.sources.stream_mixture import Blended
from relax.errors import UserError

__all__ = ["RowStream", "open_stream"]


def open_stream(source: str, split: str = "train", *, name: str | None = None) -> RowStream:
    """The rows of a source in order, for whatever :func:`relax.data.sources.loading.load_rows` takes.

    A mixture without weights is one source after the other. With weights every stretch of rows has the shares asked
    for, and an epoch ends when one of the sources does. Folders of data files and hub names are streamed by
    ``datasets``: nothing is copied to this machine first.

    Raises:
        UserError: as ``load_rows``; nothing but the first row of each file is read here.
    """
    mixed = weighted_parts(source)
    sources = tuple(_open_part(part.name, split, name) for part in mixed)
    weights = [part.weight for part in mixed if part.weight is not None]
    if len(sources) == 1:
        return sources[0]
    return Blended(sources, shares_of(weights)) if weights else Chained(sources)


def _open_part(source: str, split: str, name: str | None) -> Source:
    found = find(source)
    if isinstance(found, Files):
        files = tuple(_open_file(path, split, name) for path in found.paths)
        return files[0] if len(files) == 1 else Chained(files)
    if isinstance(found, Folder):
        loaded = open_folder(found.path, split, name, streaming=True)
    else:
        loaded = open_hub(source, split, name, streaming=True)
    return _not_empty(_of_library(loaded, source, split, name), f"{source}: the split {split!r} holds no rows")


def _open_file(path: Path, split: str, name: str | None) -> Source:
    check_file_split(path, split, name)
    kind = file_kind(path)
    if kind in LAYOUTS:
        stream: Source = LineStream(Stamped.now(path), kind)
    elif kind == ".parquet":
        stream = ParquetStream(open_parquet(path))
    else:
        rows = read_json_file(path)
        stream = PositionStream(rows, rows.fingerprint)
    return _not_empty(stream, f"{path}: the file holds no rows")


def _not_empty(stream: Source, otherwise: str) -> Source:
    if next(stream.unread(), None) is None:
        raise UserError(otherwise)
    return stream


def _of_library(loaded: Loaded, source: str, split: str, name: str | None) -> Source:
    import datasets

    identity = digest(source, split, name or "")
    if isinstance(loaded, datasets.Dataset):
        return PositionStream(DatasetRows(loaded, source), identity)
    return LibraryStream(loaded, source, identity)
