"""One cell of a row: taken as what it must be, or refused in words for people. Knows no format.

Messages show kinds and short pieces, never a whole value: a cell can be ten megabytes, and a message is one line.
"""

import difflib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from relax.data.examples import Row
from relax.data.nulls import without_null_keys
from relax.errors import UserError

_LONGEST_SHOWN = 40
_MOST_LISTED = 12
_DEEPEST = 100


def as_row(row: object) -> Row:
    """``row`` itself.

    Raises:
        UserError: it is no mapping from column to value.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"a row must be a mapping from column to value, got {kind(row)}")
    return row


def value(row: Row, column: str, flag: str = "") -> Any:
    """What the column holds; a column that is not there is refused, in a message that begins with ``flag``."""
    if column not in row:
        raise UserError(f"{flag}no {column!r} in this row, it has {listed(row)}{suggestion(column, row)}")
    return row[column]


def string(row: Row, column: str) -> str:
    """The column's text, which may be empty; anything but a string is refused."""
    text = value(row, column)
    if not isinstance(text, str):
        raise UserError(f"{column!r} must be a string, got {kind(text)}")
    return text


def kind(thing: object) -> str:
    """What sort of thing this is: ``int``, ``an empty list``, ``nothing (null)``."""
    if thing is None:
        return "nothing (null)"
    if isinstance(thing, float) and math.isnan(thing):
        return "NaN (an empty cell?)"
    if isinstance(thing, str | list | dict) and not thing:
        return f"an empty {type(thing).__name__}"
    return type(thing).__name__


def shown(thing: object) -> str:
    """A string or a number as it would be written, cut if long; of anything else its kind."""
    if isinstance(thing, str):
        text = repr(thing[: _LONGEST_SHOWN + 1])
        return text if len(thing) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...{text[-1]}"
    if isinstance(thing, int) and abs(thing) >= 10**_LONGEST_SHOWN:  # Python refuses to print the longest ones
        return f"a number of more than {_LONGEST_SHOWN} digits"
    return repr(thing) if isinstance(thing, int | float) and thing == thing else kind(thing)


def listed(columns: Collection[object]) -> str:
    """Column names, sorted, as a list; the first ones of many."""
    names = ", ".join(map(shown, sorted(map(str, columns))[:_MOST_LISTED]))
    more = len(columns) - _MOST_LISTED
    return f"[{names}, and {more} more]" if more > 0 else f"[{names}]"


def closest(word: str, names: Collection[object]) -> str | None:
    """The name most like ``word``, if any is like it; long ones and such as hold a line end are passed over."""
    usable = {name.lower(): name for name in map(str, names) if len(name) <= _LONGEST_SHOWN and name.isprintable()}
    found = difflib.get_close_matches(word[:_LONGEST_SHOWN].lower(), usable, 1)
    return usable[found[0]] if found else None


def suggestion(word: str, names: Collection[object]) -> str:
    """``; did you mean X?`` for the closest name, or nothing."""
    name = closest(word, names)
    return "" if name is None else f"; did you mean {name!r}?"


def parsed(text: str, where: str) -> Any:
    """What a cell that holds JSON as a string says.

    Raises:
        UserError: it is no JSON; the message begins with ``where``.
    """
    try:
        thing = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is a string that is not JSON ({error})") from None
    check_depth(thing, where)
    return thing


def without_nulls(thing: Any, where: str) -> Any:
    """A copy without the keys that hold ``None``; the arguments of a tool call stay, where null is a value.

    (A source that gives every object the keys of every other one takes those out itself.)

    Raises:
        UserError: nested deeper than a template could write it; the message begins with ``where``.
    """
    check_depth(thing, where)
    return without_null_keys(thing, untouched=("arguments",))


def check_unicode(texts: Iterable[str]) -> None:
    """Refuse what no tokenizer takes.

    Raises:
        UserError: a text holds half of a surrogate pair, as a broken JSON escape leaves it.
    """
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        broken = error.object[error.start]
        raise UserError(f"the text holds half of a surrogate pair ({broken!r}), which is not Unicode text") from None


def check_depth(thing: Any, where: str) -> None:
    """Refuse what a template could not write.

    Raises:
        UserError: it is nested too deep; the message begins with ``where``.
    """
    if _is_deep(thing, _DEEPEST):
        raise UserError(f"{where} is nested more than {_DEEPEST} levels deep")


def _is_deep(thing: Any, levels: int) -> bool:
    items = thing.values() if isinstance(thing, Mapping) else thing if isinstance(thing, list) else ()
    return any(levels == 0 or _is_deep(item, levels - 1) for item in items if isinstance(item, Mapping | list))
