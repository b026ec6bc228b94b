"""What a source's name stands for: files, a folder, a name on the hub, or a mixture of those. Opens none of them.

Whatever can be a path is one: only what looks like nothing but a hub name may later reach the network.
"""

import difflib
import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from relax.data.sources.files import SUFFIXES
from relax.errors import UserError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PATTERN = re.compile(r"[*?[]")
_FILE_SUFFIXES = {*SUFFIXES, ".arrow", ".bz2", ".gz", ".md", ".npy", ".pkl", ".tsv", ".xz", ".yaml", ".zip", ".zst"}


@dataclass(frozen=True)
class Files:
    """One file, or the files (sorted by name) that a pattern fits."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Folder:
    """A folder."""

    path: Path


@dataclass(frozen=True)
class HubName:
    """A name that can only be one on the hub."""

    name: str


Place: TypeAlias = Files | Folder | HubName


class Part(NamedTuple):
    """One of the parts of a mixture. Weights are relative to one another; None: no weight was given."""

    name: str
    weight: float | None


def find(name: str) -> Place:
    """What ``name`` (no mixture) is.

    Raises:
        UserError: it is empty, no such file, a pattern that fits none, or a path that the system refuses to look up.
    """
    if not name.strip():
        raise UserError("a data source must be a file, a folder or a hub name, got an empty string")
    path = _path(name)
    try:
        if path.is_dir():
            return Folder(path)
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: a pipe or a device, which cannot be read twice: write it to a file")
        if path.exists():
            return Files((path,))
        if _PATTERN.search(name):
            return Files(_matching(name))
        # A data set without an owner is one of the hub's oldest, and none of those has a dot in its name.
        dotted = "/" not in name and "." in name
        if dotted or path.suffix.lower() in _FILE_SUFFIXES or _HUB_NAME.fullmatch(name) is None:
            raise UserError(f"{path}: no such file{nearest_file(path)}")
    except OSError as error:
        raise UserError(f"{name[:200]}: cannot be read ({error.strerror or error})") from None
    return HubName(name)


def split_parts(source: str) -> list[Part]:
    """The parts of ``a.jsonl:0.7,b.parquet:0.3`` (weights may be left out). One part: the source is no mixture.

    A comma or a colon in the name of a file that exists is a part of that name.

    Raises:
        UserError: an empty part, a weight that is no number above 0, or weights for some parts only.
    """
    parts = _take_parts(source.split(","))
    for part in parts:
        if not part.name.strip() and len(parts) > 1:
            raise UserError(f"{source}: a mixture is a list of sources with commas between, got an empty one")
        if part.weight is not None and not 0 < part.weight < math.inf:
            raise UserError(f"{source}: the weight of {part.name!r} must be a number above 0, got {part.weight:g}")
    without = [part.name for part in parts if part.weight is None]
    if 0 < len(without) < len(parts):
        raise UserError(f"{source}: give a weight to all parts or to none, {without[0]!r} has none")
    return parts


def nearest_file(path: Path) -> str:
    """For the end of a message: a file beside ``path`` whose name is like its own, or that its folder is missing."""
    if not path.parent.is_dir():
        return f" (there is no folder {str(path.parent)!r})"
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""


def _matching(pattern: str) -> tuple[Path, ...]:
    found = glob.glob(str(_path(pattern)), recursive=True)  # noqa: PTH207, Path.glob takes no absolute ones
    # Two `**` find a file more than once. A link to nothing is not passed over: opening it tells.
    paths = tuple(path for path in map(Path, sorted({*found})) if not path.is_dir())
    if not paths:
        raise UserError(f"{pattern}: no file fits this pattern")
    return paths


def _take_parts(pieces: list[str]) -> list[Part]:
    """From the left, each time as many pieces as make the name of a file, else one."""
    parts = []
    while pieces:
        sizes = range(len(pieces), 1, -1)
        size = next((size for size in sizes if _is_file(pieces[:size])), 1)
        parts.append(_weighted(",".join(pieces[:size])))
        pieces = pieces[size:]
    return parts


def _weighted(text: str) -> Part:
    name, colon, weight = text.rpartition(":")
    if not colon or _exists(text):
        return Part(text if _exists(text) else text.strip(), None)
    try:
        return Part(name.strip(), float(weight))
    except ValueError:
        if _exists(name.strip()):
            raise UserError(f"{text}: behind the colon goes the part's weight, a number, got {weight!r}") from None
        return Part(text.strip(), None)


def _is_file(pieces: list[str]) -> bool:
    name, _, _ = pieces[-1].rpartition(":")
    return _exists(",".join(pieces)) or (bool(name) and _exists(",".join([*pieces[:-1], name])))


def _exists(name: str) -> bool:
    try:
        return bool(name) and _path(name).exists()
    except OSError:  # too long, or behind a folder that may not be read: `find` says so
        return False


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~name, and nobody of that name is known here
        return Path(name)
