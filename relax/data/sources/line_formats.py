"""Text files as records: JSONL, CSV, TXT. Where each record stands, and what row its bytes mean. Opens no file.

CSV cells are strings, always: a reader that guesses types would turn the completion "42" into a number.
A line ends in a line feed (a carriage return before it is no part of the text); a blank line is no row.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

from relax.data.examples import Row
from relax.data.sources.json_text import check_object, decode, parse_json
from relax.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """One row as it stands in the file."""

    line: int  # its first, counted from 1
    start: int  # its first byte's position in the file
    raw: bytes


Parse: TypeAlias = Callable[[bytes], Row]


class Layout(NamedTuple):
    """The records of a file in order, and how one is read.

    ``parse`` is picklable, does not mind blank lines behind a record, and raises UserError (without a place) for what
    is no row. ``records`` raises one (with its place) where the file cannot be cut into records.
    """

    records: Iterator[Record]
    parse: Parse


def _jsonl(file: BinaryIO, name: str) -> Layout:
    return Layout(_lines(file), _parse_object)


def _txt(file: BinaryIO, name: str) -> Layout:
    return Layout(_lines(file), _parse_text)


def _csv(file: BinaryIO, name: str) -> Layout:
    records = _csv_records(file, name)
    first = next(records, None)
    header = [] if first is None else _next_cells(csv.reader([decode(first.raw)], strict=True)) or []
    if len(set(header)) < len(header) or "" in header:
        raise UserError(f"{name}:{first.line if first else 1}: the first line must name each column once, got {header}")
    return Layout(records, partial(_parse_cells, header))


LAYOUTS: dict[str, Callable[[BinaryIO, str], Layout]] = {".jsonl": _jsonl, ".csv": _csv, ".txt": _txt}


def _lines(file: BinaryIO) -> Iterator[Record]:
    start = _skip_mark(file)
    for number, line in enumerate(file, 1):
        if not line.isspace():
            yield Record(number, start, line)
        start += len(line)


def _csv_records(file: BinaryIO, name: str) -> Iterator[Record]:
    """Records by Python's own reader: only it knows which line feeds and quotes are part of a cell."""
    start, line = _skip_mark(file), 1
    pulled: list[bytes] = []
    reader = csv.reader(_decoded(file, name, pulled), strict=True)
    while True:
        try:
            cells = _next_cells(reader)
        except csv.Error as error:
            raise UserError(f"{name}:{line}: {_not_csv(error)}") from None
        if cells is None:
            return
        raw = b"".join(pulled)
        if cells:
            yield Record(line, start, raw)
        line += len(pulled)
        start += len(raw)
        pulled.clear()


def _decoded(file: BinaryIO, name: str, pulled: list[bytes]) -> Iterator[str]:
    """The lines as text, each put into ``pulled`` when it is asked for."""
    for number, line in enumerate(file, 1):
        pulled.append(line)
        try:
            yield decode(line)
        except UserError as error:
            raise UserError(f"{name}:{number}: {error}") from None


def _skip_mark(file: BinaryIO) -> int:
    """Step over a byte order mark; the position of the first byte of text."""
    if file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK:
        return len(_BYTE_ORDER_MARK)
    return file.seek(0)


def _next_cells(reader: "Reader") -> list[str] | None:
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit, 128 KiB a cell, is less than a long document
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _parse_object(raw: bytes) -> Row:
    text = decode(raw).strip()
    if text.startswith("["):
        raise UserError("a line must be one JSON object; if the file is one JSON list, name it .json")
    return check_object(parse_json(text))


def _parse_text(raw: bytes) -> Row:
    return {"text": decode(raw.partition(b"\n")[0].removesuffix(b"\r"))}


def _parse_cells(header: list[str], raw: bytes) -> Row:
    cells = _next_cells(csv.reader([decode(raw)], strict=True)) or []
    if len(cells) != len(header):
        raise UserError(f"{len(cells)} cells where the header names {len(header)} columns")
    return dict(zip(header, cells, strict=True))


def _not_csv(error: csv.Error) -> str:
    reason, _, _ = str(error).partition(" - ")  # behind it: advice for who calls the reader
    return f"not valid CSV ({reason})"
