"""Rows as every source gives them: by position, each with a place to name. Knows neither files nor formats.

A plain list of dicts or a ``datasets.Dataset`` is rows too; what a source can say beyond that, it says by a protocol.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from relax.data.examples import Row
from relax.errors import UserError


class Rows(Protocol):
    """What a source gives: a list of dicts, a ``datasets.Dataset``, or one of ours that reads when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...


@runtime_checkable
class Located(Protocol):
    """Rows that know where each one comes from."""

    def place(self, index: int) -> str:
        """``rows.jsonl:17``: the file and, where it has lines, the line; otherwise ``rows.parquet:row 17``."""
        ...


@runtime_checkable
class Identified(Protocol):
    """Rows whose content has a name, so that what was made of them can be kept."""

    @property
    def fingerprint(self) -> str:
        """A digest: equal only for equal rows in equal order."""
        ...


@runtime_checkable
class Mixed(Protocol):
    """Rows of several parts, each of which gives a share of an epoch."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """One a part."""
        ...

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each part in an epoch's rows, in sum 1; empty: every row once an epoch."""
        ...

    def parts_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
        """Which part each of the rows at ``indices`` belongs to."""
        ...


@dataclass(frozen=True)
class RowSubset:
    """Some of the rows, by position (increasing); ``indices`` keeps where each one stood."""

    rows: Rows
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Row:
        return self.rows[int(self.indices[index])]

    def __iter__(self) -> Iterator[Row]:
        return (self.rows[int(index)] for index in self.indices)


def whole(rows: Rows) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The rows behind ``rows``, and the positions in them that are meant."""
    if isinstance(rows, RowSubset):
        inner, indices = whole(rows.rows)
        return inner, indices[rows.indices]
    return rows, np.arange(len(rows))


def place(rows: Rows, index: int, where: str) -> str:
    """Where row ``index`` comes from, for a message: the source's own word, else ``where:row N`` counted from 1."""
    if isinstance(rows, RowSubset):
        return place(rows.rows, int(rows.indices[index]), where)
    return rows.place(index) if isinstance(rows, Located) else f"{where}:row {index + 1}"


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts the place before a user's error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
