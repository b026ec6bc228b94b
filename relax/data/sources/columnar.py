"""Rows from column stores, as they were before they were stored."""

from typing import Any

from relax.data.examples import Row


def as_written(row: Row) -> Row:
    """The row without the keys that its nested objects got from others: in a column every object has the keys of all.

    A null that was written into such an object goes too; the columns themselves stay.
    """
    return {column: _pruned(cell) for column, cell in row.items()}


def _pruned(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {key: _pruned(item) for key, item in thing.items() if item is not None}
    return [_pruned(item) for item in thing] if isinstance(thing, list) else thing
