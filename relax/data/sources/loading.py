"""Where rows come from: local files, a folder, the hub, a mixture of those; and how they are split. Not what rows mean.

The network is asked only for what can be nothing but a hub name: whatever looks like a path stays on this machine.
"""

import warnings
from pathlib import Path

import numpy as np

from relax.data.rows import Rows, RowSubset
from relax.data.sources.dataset_rows import DatasetRows, open_folder, open_hub
from relax.data.sources.files import read_file
from relax.data.sources.fingerprints import SourceRows
from relax.data.sources.mixture import Joined, Mixture, shares_of
from relax.data.sources.names import Files, Folder, Part, find, split_parts
from relax.errors import UserError
from relax.seeding import mix


def load_rows(source: str, split: str = "train", *, name: str | None = None) -> SourceRows:
    """The rows of a data set. Files are read as rows are asked for (.json alone is read whole).

    ``source`` is one of

    - a local .jsonl, .json, .parquet, .csv or .txt file (each line a row ``{"text": line}``), perhaps with .gz behind;
    - a pattern such as ``data/*.jsonl``: all files it fits, sorted by name;
    - a folder saved by ``datasets`` or holding data files;
    - else a name on the Hugging Face hub;
    - several of those with commas between: all their rows; or with weights, ``a.jsonl:0.7,b.parquet:0.3``: a mixture
      whose epochs are made up in these proportions.

    ``split`` and ``name`` (the configuration) choose among what a folder or a hub data set holds; a file has only the
    split "train". Both hold for all parts of a mixture.

    Raises:
        UserError: missing, empty, unreadable or broken file; unknown hub name, configuration or split; no rows; weights
            that are not numbers above 0. Also when a row is read later: its file and line, and what is wrong with it.
    """
    mixed = weighted_parts(source)
    loaded = [_load(part.name, split, name) for part in mixed]
    if len(mixed) == 1:
        return loaded[0]
    weights = [part.weight for part in mixed if part.weight is not None]
    return Mixture(Joined(tuple(loaded)), tuple(part.name for part in mixed), shares_of(weights))


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


def weighted_parts(source: str) -> list[Part]:
    """The parts of a source; warns of a weight that has no other beside it.

    Raises:
        UserError: as :func:`relax.data.sources.names.split_parts`.
    """
    found = split_parts(source)
    if len(found) == 1 and found[0].weight is not None:
        warnings.warn(f"{source}: a weight has no effect on the only part", stacklevel=3)
    return found


def check_file_split(path: Path, split: str, name: str | None) -> None:
    """Refuse what a single file does not have.

    Raises:
        UserError: another split than "train", or a configuration.
    """
    if split != "train" or name is not None:
        asked = f"split {split!r}" if name is None else f"configuration {name!r}"
        raise UserError(f"{path}: a single file has no {asked}; give that part as a file of its own")


def _load(source: str, split: str, name: str | None) -> SourceRows:
    rows = _open(source, split, name)
    if not len(rows):
        raise UserError(f"{source}: the split {split!r} holds no rows")
    return rows


def _open(source: str, split: str, name: str | None) -> SourceRows:
    found = find(source)
    if isinstance(found, Folder):
        return DatasetRows(open_folder(found.path, split, name), source)
    if not isinstance(found, Files):
        return DatasetRows(open_hub(source, split, name), source)
    for path in found.paths:
        check_file_split(path, split, name)
    files = tuple(read_file(path) for path in found.paths)
    return files[0] if len(files) == 1 else Joined(files)
