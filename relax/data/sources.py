"""Where rows come from: a local file, a folder, or the hub; and how they are split. Knows nothing of what a row means.

The network is asked only for what can be nothing but a hub name: whatever looks like a path stays on this machine.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from relax.data.files import READERS, first_line, read_file
from relax.data.formats import Row
from relax.errors import UserError
from relax.seeding import mix

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_SUFFIXES = {
    *READERS,
    ".arrow",
    ".bz2",
    ".gz",
    ".md",
    ".npy",
    ".pkl",
    ".tsv",
    ".txt",
    ".xz",
    ".yaml",
    ".zip",
    ".zst",
}


class Rows(Protocol):
    """What a source gives: a list of dicts, or a ``datasets.Dataset`` that reads from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...


@dataclass(frozen=True)
class RowSubset:
    """Some of the rows, by position; ``indices`` keeps where each one stood, for messages and for tracing."""

    rows: Rows
    indices: np.ndarray[Any, np.dtype[np.int64]]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Row:
        return self.rows[int(self.indices[index])]

    def __iter__(self) -> Iterator[Row]:
        return (self.rows[int(index)] for index in self.indices)


def load_rows(source: str, split: str = "train", *, name: str | None = None) -> Rows:
    """The rows of a data set.

    ``source`` is a local .jsonl, .json, .parquet or .csv file; a folder saved by ``datasets`` or holding such files; or
    else a name on the Hugging Face hub. ``split`` and ``name`` (the configuration) choose among what a folder or a hub
    data set holds; a single file has only the split "train".

    Raises:
        UserError: missing, empty, unreadable or broken file; unknown hub name, configuration or split; no rows.
    """
    path = Path(source).expanduser()
    if not source.strip():
        raise UserError("a data source must be a file, a folder or a hub name, got an empty string")
    if path.is_dir():
        rows = _load_folder(path, split, name)
    elif path.exists() or _looks_like_path(source):
        rows = _load_file(path, split, name)
    else:
        rows = _load_hub(source, split, name)
    if len(rows) == 0:
        raise UserError(f"{source}: the split {split!r} holds no rows")
    return rows


def split_rows(rows: Rows, validation: float | int, seed: int) -> tuple[RowSubset, RowSubset]:
    """Train and validation rows, chosen at random, a pure function of (number of rows, ``validation``, ``seed``).

    ``validation`` is a share of the rows (a float between 0 and 1) or a number of rows (an int). Both parts keep the
    rows' order and get at least one row.

    Raises:
        UserError: the share or number leaves one of the two parts without a row.
    """
    total = len(rows)
    share = isinstance(validation, float)
    count = max(1, round(validation * total)) if share and validation > 0 else int(validation)
    if not 1 <= count < total:
        raise UserError(
            f"--val_split must be a share between 0 and 1 or a number of rows from 1 to {total - 1}, "
            f"got {validation} of {total} rows"
        )
    order = np.random.default_rng(mix("split", seed)).permutation(total)
    return RowSubset(rows, np.sort(order[count:])), RowSubset(rows, np.sort(order[:count]))


def _looks_like_path(source: str) -> bool:
    return Path(source).suffix.lower() in _FILE_SUFFIXES or _HUB_NAME.fullmatch(source) is None


def _load_file(path: Path, split: str, name: str | None) -> Rows:
    if not path.exists():
        raise UserError(f"{path}: no such file{_nearest_file(path)}")
    if split != "train" or name is not None:
        asked = f"split {split!r}" if name is None else f"configuration {name!r}"
        raise UserError(f"{path}: a single file has no {asked}; give that part as a file of its own")
    return read_file(path)


def _load_folder(path: Path, split: str, name: str | None) -> Rows:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _load_saved(path, split)
    try:
        return _load_dataset(str(path.resolve()), split, name)
    except _dataset_errors() as error:
        raise UserError(f"{path}: cannot be loaded ({first_line(error.__cause__ or error)})") from None


def _load_saved(path: Path, split: str) -> Rows:
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except _dataset_errors() as error:
        raise UserError(f"{path}: cannot be loaded ({first_line(error)})") from None
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        raise UserError(f"{path}: no split {split!r} in this folder, it has {', '.join(sorted(splits))}")
    rows: Rows = splits[split]
    return rows


def _load_hub(source: str, split: str, name: str | None) -> Rows:
    import datasets

    absent = (datasets.exceptions.DatasetNotFoundError, ConnectionError)
    try:
        return _load_dataset(source, split, name)
    except absent as error:
        reason = first_line(error)
        near = _nearest_file(Path(source))
        raise UserError(f"{source}: neither a file here nor reachable on the hub ({reason}){near}") from None
    except _dataset_errors() as error:
        raise UserError(f"{source}: cannot be loaded from the hub ({first_line(error.__cause__ or error)})") from None


def _load_dataset(source: str, split: str, name: str | None) -> Rows:
    import datasets

    load: Callable[..., Rows] = datasets.load_dataset
    return load(source, name, split=split)


def _dataset_errors() -> tuple[type[Exception], ...]:
    """What ``datasets`` raises for a wrong name, split, configuration or content, and for a file system that fails."""
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    return (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {str(path.parent)!r})"
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
