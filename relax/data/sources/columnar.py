"""Rows from column stores, as they were before they were stored."""

from relax.data.examples import Row
from relax.data.nulls import without_null_keys


def as_written(row: Row) -> Row:
    """The row without the keys that its nested objects got from others: in a column every object has the keys of all.

    A null that was written into such an object goes too; the columns themselves stay.
    """
    return {column: without_null_keys(cell) for column, cell in row.items()}
