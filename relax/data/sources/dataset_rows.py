"""Folders and hub names as the ``datasets`` library loads them, whole or streaming. The only file that asks it.

Data sets whose loading runs code of their own are refused (the library no longer knows how to).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from relax.data.examples import Row
from relax.data.rows import Rows
from relax.data.sources.json_text import first_line
from relax.data.sources.names import nearest_file
from relax.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Loaded: TypeAlias = "Dataset | IterableDataset"


@dataclass(frozen=True)
class DatasetRows:
    """A ``datasets.Dataset`` (Arrow files mapped into memory), with places and a fingerprint."""

    dataset: "Dataset"
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Row:
        row: Row = self.dataset[index]
        return row

    def __iter__(self) -> Iterator[Row]:
        return iter(self.dataset)

    def place(self, index: int) -> str:
        """``org/name:row 17``."""
        return f"{self.name}:row {index + 1}"

    @property
    def fingerprint(self) -> str:
        """The library's own: of the files it read, and of what was done to the rows since."""
        fingerprint: str = self.dataset._fingerprint
        return fingerprint


def named(rows: Rows, name: str) -> Rows:
    """The rows; a bare ``datasets.Dataset`` among them with places and a fingerprint."""
    library = sys.modules.get("datasets")  # whoever passes one has imported it
    return DatasetRows(rows, name) if library is not None and isinstance(rows, library.Dataset) else rows


def open_folder(path: Path, split: str, name: str | None, *, streaming: bool = False) -> Loaded:
    """A folder saved by ``datasets`` (never streaming: it is not copied into memory anyway), or one of data files.

    Raises:
        UserError: it is neither; an unknown split or configuration; damaged files.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _open_saved(path, split, name)
    import datasets

    with _loading(str(path), "cannot be loaded"):
        try:
            return datasets.load_dataset(str(path.resolve()), name, split=split, streaming=streaming)
        except datasets.data_files.EmptyDatasetError:
            raise UserError(f"{path}: a folder without a data file in it") from None


def open_hub(source: str, split: str, name: str | None, *, streaming: bool = False) -> Loaded:
    """A data set of the Hugging Face hub, or of the library's cache of it.

    Raises:
        UserError: unknown or out of reach; an unknown split or configuration; files it cannot load.
    """
    import datasets

    with _loading(source, "cannot be loaded from the hub"):
        try:
            return datasets.load_dataset(source, name, split=split, streaming=streaming)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            near = nearest_file(Path(source))
            raise UserError(
                f"{source}: neither a file here nor reachable on the hub ({first_line(error)}){near}"
            ) from None


def stream_rows(dataset: "IterableDataset", name: str, skip: int) -> Iterator[tuple[str, Row]]:
    """(place, row) of a streaming data set from row ``skip`` on, skipped as the library does it.

    Raises:
        UserError: the next rows (the library reads several at a time) cannot be fetched or decoded.
    """
    rows = iter(dataset.skip(skip) if skip else dataset)
    for number in count(skip + 1):
        with _loading(name, f"the rows from number {number} on cannot be read"):
            row = next(rows, None)
        if row is None:
            return
        yield f"{name}:row {number}", row


def _open_saved(path: Path, split: str, name: str | None) -> Loaded:
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    import datasets

    if name is not None:
        raise UserError(f"{path}: a folder saved by datasets has no configuration {name!r}; leave it out")
    with _loading(str(path), "cannot be loaded"):
        saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        raise UserError(f"{path}: no split {split!r} in this folder, it has {', '.join(sorted(splits))}")
    return splits[split]


@contextmanager
def _loading(name: str, failure: str) -> Iterator[None]:
    """One line for what ``datasets`` raises: wrong name, split, configuration or content, a file system that fails."""
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    try:
        yield
    except UserError:
        raise
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name}: {failure} ({first_line(error.__cause__ or error)})") from None
