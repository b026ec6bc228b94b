"""A row -> the prompt in it, whatever its format. Knows no tokenizer and no chat template."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from relax.data.examples import Message, Prompt, Row
from relax.data.formats.cells import as_row, closest, listed, string
from relax.data.formats.formats import FORMATS, Format, choose, rename_any
from relax.data.formats.messages import read_conversation, read_turns
from relax.data.formats.preference import read_preference
from relax.data.formats.prompts import alpaca_prompt, read_prompt
from relax.data.formats.tools import read_tools
from relax.data.rows import Mixed, Rows, at, place, whole
from relax.errors import UserError

Readers: TypeAlias = "Mapping[int, PromptReader]"
_USUAL = ("question", "problem", "query", "instruction", "input", "text")
_FOR_EXAMPLE = "YOUR_COLUMN"


@dataclass(frozen=True)
class PromptReader:
    """Reads the prompts of rows of one format.

    Args:
        format: One of :data:`READERS`.
        columns: Our column name -> the rows' name for it.
        as_chat: The prompts are to be a user's turns: Alpaca's instruction comes without the words around it.
    """

    format: Format
    columns: Mapping[str, str]
    as_chat: bool

    def named(self, row: object) -> Row:
        """The row with its columns called as we, and the reward functions, call them."""
        return rename_any(row, self.columns) if self.columns else as_row(row)

    def read(self, row: Row) -> Prompt:
        """The prompt of a row that :meth:`named` gave.

        Raises:
            UserError: there is none in it; one line, without the row's place.
        """
        if not self.as_chat:
            return READERS[self.format.name](row)
        return _CHAT_READERS[self.format.name](row)._replace(tools=read_tools(row))


def prompt_readers(
    rows: Rows, data_format: str | None, columns: Mapping[str, str] | None, *, as_chat: bool, where: str
) -> dict[int, PromptReader]:
    """By part of a mixture (0 where there is none): a reader for the format that the part's first row has.

    Raises:
        UserError: there is no row; no format with a prompt fits, or not the named one.
    """
    if not len(rows):
        raise UserError(f"{where}: no rows")
    readers = {}
    for part, first in _first_rows(rows).items():
        with at(place(rows, first, where)):
            found = rename_any(rows[first], columns or {}).keys()
            readers[part] = PromptReader(choose_format(data_format, found), columns or {}, as_chat)
    return readers


def reward_columns(rows: Rows, columns: Mapping[str, str] | None = None, *, where: str = "training data") -> set[str]:
    """What reward functions can ask for: the columns of the first row (of each part of a mixture), renamed.

    Raises:
        UserError: there is no row, or ``columns`` names a column that the row does not have.
    """
    if not len(rows):
        raise UserError(f"{where}: no rows")
    found: set[str] = set()
    for first in _first_rows(rows).values():
        with at(place(rows, first, where)):
            found |= rename_any(rows[first], columns or {}).keys()
    return found


def choose_format(name: str | None, columns: Collection[str]) -> Format:
    """The format of the name, or without one the first with a prompt whose columns are all there.

    Raises:
        UserError: no such format, one without prompts, or one that needs a column that is not there; or none fits.
    """
    if name is not None:
        chosen = choose(name, columns)
        if name not in READERS:
            raise UserError(f"--data_format={name} has no prompts, those that have are {', '.join(READERS)}")
        return chosen
    fitting = (known for known in FORMATS.values() if known.name in READERS and {*columns}.issuperset(known.columns))
    if found := next(fitting, None):
        return found
    raise UserError(
        f"no column holds a prompt, the columns are {listed(columns)}; "
        f"say which one does with --columns='{{prompt: {_guess(columns)}}}'"
    )


def _first_rows(rows: Rows) -> dict[int, int]:
    """Part -> position of its first row."""
    behind, numbers = whole(rows)
    if not isinstance(behind, Mixed):
        return {0: 0}
    parts, firsts = np.unique(behind.parts_of(numbers), return_index=True)
    return dict(zip(parts.tolist(), firsts.tolist(), strict=True))


def _guess(columns: Collection[str]) -> str:
    likely = (name for name in _USUAL if name in columns)
    return closest("prompt", columns) or next(likely, _FOR_EXAMPLE)


def _read_messages(row: Row) -> Prompt:
    return Prompt(_asked(read_turns(row, "messages"), "messages"), read_tools(row))


def _read_conversations(row: Row) -> Prompt:
    return Prompt(_asked(read_conversation(row, "conversations"), "conversations"), read_tools(row))


def _asked(messages: list[Message], column: str) -> list[Message]:
    """Without the answer that the conversation ends with; one that ends with somebody else's turn awaits its answer."""
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise UserError(f"{column!r} has no turn before the answer: there is nothing to ask")
    return asked


def _read_preference(row: Row) -> Prompt:
    pair = read_preference(row)
    if not pair.prompt:
        raise UserError("'chosen' and 'rejected' have no prompt apart: give it a column of its own, 'prompt'")
    return Prompt(pair.prompt, pair.tools)


def _read_alpaca(row: Row) -> Prompt:
    return Prompt(alpaca_prompt(row))


def _read_instruction(row: Row) -> Prompt:
    """The instruction and its input as a user would write them."""
    context = string(row, "input") if row.get("input") is not None else ""
    return Prompt("\n\n".join(filter(None, (string(row, "instruction"), context))))


READERS: dict[str, Callable[[Row], Prompt]] = {
    "messages": _read_messages,
    "conversations": _read_conversations,
    "preference": _read_preference,
    "alpaca": _read_alpaca,
    "prompt_completion": read_prompt,  # the completion is not looked at
    "prompt": read_prompt,
}
_CHAT_READERS = READERS | {"alpaca": _read_instruction}
