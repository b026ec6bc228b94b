"""Small files for the tests of sources, in the current folder; and rows that are hard on encodings and quoting."""

import csv
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from relax.errors import UserError

ROWS = [{"prompt": "2+2=", "completion": "4"}, {"prompt": "é\u2028😀", "completion": 'a, "b"\nc'}]


def write(name: str, content: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return name


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(name: str, count: int) -> list[dict[str, str]]:
    """Rows that say whose and which they are."""
    return [{"text": f"{name}{number}"} for number in range(count)]


def write_csv(name: str, rows: list[dict[str, Any]]) -> str:
    with Path(name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return name


def write_parquet(name: str, rows: list[dict[str, Any]], **options: Any) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), name, **options)
    return name


def message_of(error: "pytest.ExceptionInfo[UserError]") -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
