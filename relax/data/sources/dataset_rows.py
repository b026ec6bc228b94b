"""Folders and hub names as the ``datasets`` library loads them, whole or streaming. The only file that asks it.

Data sets whose loading runs code of their own are refused (the library no longer knows how to).
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from relax.data.examples import Row
from relax.data.rows import Rows
from relax.data.sources.columnar import as_written
from relax.data.sources.files import SUFFIXES
from relax.data.sources.json_text import first_line
from relax.data.sources.names import nearest_file
from relax.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_ABOUT = ("dataset_info.json", "dataset_infos.json")
Loaded: TypeAlias = "Dataset | IterableDataset"
# What the library lets through of a file that is not as it should be: empty, without a key, with code, with odd cells.
_OF_BAD_FILES = (OSError, ValueError, RuntimeError, LookupError, OverflowError, StopIteration)


@dataclass(frozen=True)
class DatasetRows:
    """A ``datasets.Dataset`` (Arrow files mapped into memory), with places and a fingerprint."""

    dataset: "Dataset"
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Row:
        index = range(len(self))[index]
        with _loading(self.name, f"row {index + 1} cannot be read"):
            return as_written(self.dataset[index])

    def __iter__(self) -> Iterator[Row]:
        return _each(iter(self.dataset), self.name, 1)

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
            found = datasets.load_dataset(str(path.resolve()), name, split=split, streaming=streaming)
        except datasets.data_files.EmptyDatasetError:
            raise UserError(f"{path}: a folder without a data file in it") from None
        if not (path / "README.md").exists():  # it may say which files belong to which configuration
            _look_at_the_files(path)
    return found


def _look_at_the_files(path: Path) -> None:
    """Refuse tables whose cells the library guesses the types of, and warn of files that it leaves out.

    It reads files of one kind, and if some are named after a split only those; it does not say so.
    """
    import datasets

    root = path.resolve()
    splits = datasets.load_dataset_builder(str(root)).config.data_files
    read = {Path(file) for files in splits.values() for file in files}
    if any(file.suffix.lower() in (".csv", ".tsv") for file in read):
        raise UserError(
            f"{path}: cells of .csv files in a folder would be guessed to be numbers (007 becomes 7); give the files "
            f"instead, as they are read with every cell a text: --dataset='{path}/*.csv'"
        )
    there = {file for suffix in SUFFIXES for file in root.rglob(f"*{suffix}") if file.name not in _ABOUT}
    names = sorted(str(file.relative_to(root)) for file in there - read)
    if left_out := [name for name in names if not name.startswith(".")]:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        warnings.warn(
            f"{path}: the files of no split are left out, here {left_out[0]}{more}; to read files whatever their "
            f"names, give a pattern such as {path}/*{Path(left_out[0]).suffix}",
            stacklevel=2,
        )


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
    rows = _each(iter(dataset.skip(skip) if skip else dataset), name, skip + 1)
    return ((f"{name}:row {number}", row) for number, row in enumerate(rows, skip + 1))


def _each(rows: Iterator[Row], name: str, first: int) -> Iterator[Row]:
    """The rows, of which the next one is number ``first``."""
    for number in count(first):
        with _loading(name, f"the rows from number {number} on cannot be read"):
            row = next(rows, None)
        if row is None:
            return
        yield as_written(row)


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
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, *_OF_BAD_FILES) as error:
        raise UserError(f"{name}: {failure} ({first_line(error.__cause__ or error)})") from None
