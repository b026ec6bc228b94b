"""Bytes -> text -> JSON -> a row; what is wrong is said in one line, before which the caller puts the place."""

import json
from typing import Any

from relax.data.examples import Row
from relax.errors import UserError


def decode(raw: bytes) -> str:
    """UTF-8 text.

    Raises:
        UserError: it is something else; the message names the first wrong byte.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        raise UserError(f"not valid UTF-8 ({byte}): save the file as UTF-8") from None


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        UserError: it is not JSON, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON ({first_line(error)})") from None


def check_object(row: Any) -> Row:
    """``row``, which must be an object.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(row, dict):
        raise UserError(f"a row must be a JSON object, got {type(row).__name__}")
    return row


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, or its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
