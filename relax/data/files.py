"""One local file -> rows (a list of dicts): JSONL, JSON, Parquet, CSV. Not a source: no hub, no folders, no splits.

JSONL is read by our own reader, so that a broken line is reported with its number. CSV cells are strings, always: a
reader that guesses types would turn the completion "42" into a number. The whole file is held in memory.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from relax.errors import UserError

FileRows = list[dict[str, Any]]


def read_file(path: Path) -> FileRows:
    """The rows of a local file, by its suffix (one of :data:`READERS`).

    Raises:
        UserError: wrong suffix, empty, unreadable or broken file, or no row in it; the message names the file.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: a data file ends in {', '.join(READERS)}, got {path.suffix or 'no suffix'!r}")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes)")
        rows = reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise UserError(f"{path}: the file holds no rows")
    return rows


def _read_jsonl(path: Path) -> FileRows:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.lstrip().startswith(b"["):
                raise UserError(
                    f"{path}:1: a line must be one JSON object; if the file is one JSON list, name it .json"
                )
            if text := _decode(line, f"{path}:{number}").strip():
                rows.append(_object(_parse_json(text, f"{path}:{number}"), f"{path}:{number}"))
    return rows


def _read_json(path: Path) -> FileRows:
    text = _decode(path.read_bytes(), str(path))
    if not text.strip():
        return []
    lines = text.split("\n", 2)
    if len(lines) > 1 and lines[0].rstrip().endswith("}") and lines[1].lstrip().startswith("{"):
        raise UserError(f"{path}: not valid JSON, it holds one object a line: rename it to .jsonl")
    data = _parse_json(text, str(path))
    if isinstance(data, dict):
        data = data.get("data")
    if not isinstance(data, list):
        raise UserError(f'{path}: a .json file must be a list of objects, or {{"data": [...]}}, got another shape')
    return [_object(row, f"{path}:row {number}") for number, row in enumerate(data, 1)]


def _read_parquet(path: Path) -> FileRows:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _read_csv(path: Path) -> FileRows:
    text = _decode(path.read_bytes(), str(path))
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit, 128 KiB a cell, is less than a long document
    try:
        return list(_csv_rows(text, path))
    except csv.Error as error:
        raise UserError(f"{path}: not valid CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _csv_rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header) or "" in header:
        raise UserError(f"{path}:1: the first line must name each column once, got {header}")
    for cells in reader:
        if cells and len(cells) != len(header):
            raise UserError(
                f"{path}:{reader.line_num}: {len(cells)} cells where the header names {len(header)} columns"
            )
        if cells:
            yield dict(zip(header, cells, strict=True))


READERS: dict[str, Callable[[Path], FileRows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, or its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def _decode(raw: bytes, where: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        raise UserError(f"{where}: not valid UTF-8 ({byte}): save the file as UTF-8") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({first_line(error)})") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be a JSON object, got {type(row).__name__}")
    return row
