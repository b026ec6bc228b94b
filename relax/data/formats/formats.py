"""What a row means: its format, recognised by its columns or named, its columns renamed. Knows no tokenizer.

How a row of each format is read stands in the files beside this one; what it is read as, in ``examples``.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from relax.data.examples import Example, Row
from relax.data.formats.cells import as_row, closest, listed, shown, suggestion, value
from relax.data.formats.preference import read_preference
from relax.data.formats.pretokenized import read_tokens
from relax.data.formats.prompts import (
    read_alpaca,
    read_conversations,
    read_messages,
    read_prompt,
    read_prompt_completion,
    read_text,
)
from relax.errors import UserError

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    ``columns`` make it out; ``optional`` ones are read where they are there. ``parse`` is given a row and raises
    UserError for one that is not of the format.
    """

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Row], Example]
    optional: tuple[str, ...] = ()

    def read(self, row: object) -> Example:
        """What the row means.

        Raises:
            UserError: it is no row of this format; one line that says why, without the row's place.
        """
        row = as_row(row)
        missing = [column for column in self.columns if row.get(column) is None]
        other = _first_fitting(column for column, cell in row.items() if cell is not None) if missing else None
        if other and not {*other.columns} <= {*self.columns}:
            raise UserError(
                f"the rows are read as {self.name!r}, this one has no {missing[0]!r} and looks like {other.name!r}: "
                "a data set has one format, put the rows of each into a file of its own"
            )
        return self.parse(row)


# The first that fits wins, so the most structured come first: many data sets carry a rendered `text` or a bare `prompt`
# beside their `messages`. Ids come after messages, because published ones are another model's more often than ours.
FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format("messages", ("messages",), read_messages, ("tools",)),
        Format("conversations", ("conversations",), read_conversations, ("tools", "system")),
        Format("preference", ("chosen", "rejected"), read_preference, ("prompt", "tools")),
        Format(
            "tokenized",
            ("input_ids",),
            read_tokens,
            (
                "labels",
                "loss_mask",
                "completion_mask",
                "assistant_masks",
                "attention_mask",
                "position_ids",
                "seq_lengths",
            ),
        ),
        Format("alpaca", ("instruction", "output"), read_alpaca, ("input",)),
        Format("prompt_completion", ("prompt", "completion"), read_prompt_completion, ("tools",)),
        Format("prompt", ("prompt",), read_prompt, ("tools",)),
        Format("text", ("text",), read_text),
    )
}
_COLUMNS = {column for known in FORMATS.values() for column in (*known.columns, *known.optional)}


def choose(name: str | None, columns: Collection[str]) -> Format:
    """The format of the name, or without one the format :func:`recognise` finds.

    Raises:
        UserError: no such format, or it needs a column that is not there; or none fits.
    """
    if name is None:
        return recognise(columns)
    if name not in FORMATS:
        raise UserError(f"--data_format must be one of {', '.join(FORMATS)}, got {name}{suggestion(name, FORMATS)}")
    chosen = FORMATS[name]
    missing = [column for column in chosen.columns if column not in columns]
    if missing:
        raise UserError(
            f"--data_format={name} needs a column {missing[0]!r}, and the columns are {listed(columns)}; "
            f"{_way_out(missing, columns, missing[0])}"
        )
    return chosen


def recognise(columns: Collection[str]) -> Format:
    """The format whose columns are all there, the first of :data:`FORMATS` if several fit; other columns are ignored.

    Raises:
        UserError: none fits; the message lists the columns, the formats and the nearest names.
    """
    if fitting := _first_fitting(columns):
        return fitting
    formats = "; ".join(" + ".join(known.columns) for known in FORMATS.values())
    wanted = sorted({column for known in FORMATS.values() for column in known.columns} - {*columns})
    raise UserError(
        f"no format fits the columns {listed(columns)}: known are {formats}; {_way_out(wanted, columns, 'text')}"
    )


def rename(row: object, columns: Mapping[str, str]) -> Row:
    """The row with its columns called as we call them; ``columns`` holds our name -> the row's name.

    Raises:
        UserError: a name that is not ours, a column that the row does not have, or one that would hide another.
    """
    for ours in columns:
        if ours not in _COLUMNS:
            raise UserError(
                f"--columns: no format has a column {shown(ours)}, known are {', '.join(sorted(_COLUMNS))}"
                f"{suggestion(ours, _COLUMNS)}"
            )
    return rename_any(row, columns)


def rename_any(row: object, columns: Mapping[str, str]) -> Row:
    """As :func:`rename`, with any names: those of columns that reward functions ask for, too.

    Raises:
        UserError: a column that the row does not have, or one that would hide another.
    """
    row = as_row(row)
    for ours, theirs in columns.items():
        if theirs not in row:
            raise UserError(
                f"--columns: {ours!r} is to be {shown(theirs)}, and the row has no such column, it has "
                f"{listed(row)}{suggestion(theirs, row)}"
            )
        if row.get(ours) is not None and ours not in columns.values():
            raise UserError(
                f"--columns: {ours!r} is to be {shown(theirs)}, and the row has a column {ours!r} already; "
                "take one of the two out of the data"
            )
    moved = {*columns.values()}
    kept = {column: cell for column, cell in row.items() if column not in moved}
    return {**kept, **{ours: row[theirs] for ours, theirs in columns.items()}}


def read_weight(row: object, column: str, flag: str = "--weight_column") -> float:
    """The row's weight in the loss, or what else ``flag`` names a column for, as a 32-bit number.

    The cell is a number, or a string that holds one (CSV has only strings).

    Raises:
        UserError: no such column, no number, or a number that is negative or not finite.
    """
    weight = value(as_row(row), column, f"{flag}: ")
    number = _number(weight) if isinstance(weight, str) else weight
    if isinstance(number, bool) or not isinstance(number, int | float | np.integer | np.floating):
        raise UserError(f"{flag}: {column!r} must hold a number, got {shown(weight)}")
    if not 0 <= number <= _LARGEST_WEIGHT:
        raise UserError(f"{flag}: {column!r} must be finite and at least 0, got {shown(weight)}")
    return float(np.float32(number))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _first_fitting(columns: Iterable[str]) -> Format | None:
    there = {*columns}
    return next((known for known in FORMATS.values() if there.issuperset(known.columns)), None)


def _way_out(wanted: Collection[str], columns: Collection[str], example: str) -> str:
    """Which column may be meant by which, as the flag that says so; else ``example`` shows the flag."""
    others = [name for name in map(str, columns) if name not in _COLUMNS]
    for ours in sorted(wanted):
        if theirs := closest(ours, others):
            return f'if {theirs!r} is what it calls {ours!r}, say so with --columns="{{{ours}: {theirs}}}"'
    return f'say which is which with --columns="{{{example}: YOUR_NAME}}"'
