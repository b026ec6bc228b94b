"""Tokenized data sets kept on disk, so that a second run starts without tokenizing. Knows neither rows nor text.

FOLDER/KEY/
  tokens.bin      int32, little-endian, all rows one behind the other: mapped, never loaded whole
  loss_mask.bin   one byte a token
  *.npy           what is known of each row
  cache.json      written last: the size of each file, the digest of the small ones, report, fingerprint
FOLDER/KEY.lock   held by the process that tokenizes; the other ranks wait for it

A KEY names everything that the content depends on, so an entry is never out of date; it may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from relax.data.tokens.tokenized import RowFacts, TokenBlock, TokenizationReport, TokenizedDataset

_MANIFEST = "cache.json"
_FLAT = {"tokens": np.dtype("<i4"), "loss_mask": np.dtype(np.bool_)}
_ROWS = ("offsets", "source_rows", "num_targets", "row_weights")
# What a file that is missing, cut off or overwritten leads to, read as JSON or as an array.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError)


class CacheFailed(Exception):  # noqa: N818, it says what happened
    """The cache cannot be written: no room, not allowed, or a file system without locks."""


def default_folder() -> Path:
    """``$RELAX_CACHE/tokenized``, or ``~/.cache/relax/tokenized``."""
    return Path(os.environ.get("RELAX_CACHE") or "~/.cache/relax").expanduser() / "tokenized"


def load_or_make(entry: Path, make: Callable[[], Generator[TokenBlock]]) -> TokenizedDataset:
    """The data set kept in the folder ``entry``; made, and kept there, by one process while the others wait.

    A damaged entry is made anew, with a warning. Its tokens are not read for that: only their number is compared.

    Raises:
        CacheFailed: the entry is not there and cannot be written. Whatever ``make`` raises.
    """
    found = _load(entry)
    if found is not None:
        return found
    with _locked(entry):
        found = _load(entry)  # another process may have made it by now
        return _make(entry, make()) if found is None else found


def _load(entry: Path) -> TokenizedDataset | None:
    """None: not there, or damaged."""
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        if any(_mark(entry / name) != mark for name, mark in manifest["files"].items()):
            return None
        rows = {name: np.load(entry / f"{name}.npy") for name in _ROWS if f"{name}.npy" in manifest["files"]}
        report = TokenizationReport.from_json(manifest["report"])
        return TokenizedDataset(**_map(entry), **rows, report=report, fingerprint=manifest["fingerprint"])
    except _DAMAGE:
        return None


def _make(entry: Path, blocks: Generator[TokenBlock]) -> TokenizedDataset:
    with _storing():
        if entry.exists():
            warnings.warn(f"the kept tokens in {entry} are damaged, they are made anew", stacklevel=2)
            shutil.rmtree(entry)
        for left_by_a_killed_process in entry.parent.glob(f"{entry.name}.tmp-*"):
            shutil.rmtree(left_by_a_killed_process)
    with closing(_Writer(entry)) as writer, closing(blocks):
        for block in blocks:
            writer.add(block)
        return writer.finish()


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise CacheFailed(" ".join(str(error).split())) from error


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    with ExitStack() as stack:
        with _storing():
            entry.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(entry.with_name(f"{entry.name}.lock")))
        yield


class _Writer:
    """An entry on its way, under a temporary name until it is whole."""

    @_storing()
    def __init__(self, entry: Path) -> None:
        self.entry, self.temporary = entry, entry.with_name(f"{entry.name}.tmp-{os.getpid()}")
        self.facts: list[RowFacts] = []
        self.report = TokenizationReport()
        self.temporary.mkdir()
        self.flat = {name: (self.temporary / f"{name}.bin").open("wb") for name in _FLAT}

    @_storing()
    def add(self, block: TokenBlock) -> None:
        """Write the tokens behind the others."""
        for name, dtype in _FLAT.items():
            self.flat[name].write(np.asarray(getattr(block, name), dtype=dtype).data)
        self.facts.append(block.facts)
        self.report.add(block.report)

    @_storing()
    def finish(self) -> TokenizedDataset:
        """Make it durable and rename it to ``entry``."""
        for file in self.flat.values():
            file.flush()
            os.fsync(file.fileno())
        dataset = TokenizedDataset.assemble(
            **_map(self.temporary), facts=RowFacts.joined(self.facts), report=self.report
        )
        for name in _ROWS:
            if getattr(dataset, name) is not None:
                np.save(self.temporary / f"{name}.npy", getattr(dataset, name))
        marks = {file.name: _mark(file) for file in self.temporary.iterdir()}
        manifest = {"files": marks, "report": dataset.report.as_json(), "fingerprint": dataset.fingerprint}
        (self.temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        self.temporary.rename(self.entry)
        return dataset

    def close(self) -> None:
        """Leave nothing half-written behind."""
        for file in self.flat.values():
            file.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


def _map(folder: Path) -> dict[str, Any]:
    mapped = {name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name, dtype in _FLAT.items()}
    return {name: np.asarray(array) for name, array in mapped.items()}


def _mark(file: Path) -> str:
    """What tells a whole file from a damaged one: the size, of a small one the content too."""
    size = str(file.stat().st_size)
    return size if file.suffix == ".bin" else f"{size} {hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()}"
