"""What a row means: recognised by its columns, read as prompt and completion or as chat turns. Knows no tokenizer."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from relax.errors import UserError

Row = Mapping[str, Any]
Message = dict[str, Any]


class Text(NamedTuple):
    """Plain text: ``prompt`` (may be empty) is read, ``completion`` is learnt. A ``text`` row is all completion."""

    prompt: str
    completion: str


class Chat(NamedTuple):
    """A conversation, and the positions in it (increasing, at least one) of the assistant turns to learn."""

    messages: list[Message]
    answers: list[int]


@dataclass(frozen=True)
class Format:
    """A shape of rows: its columns, and how a row of it is read (raises UserError for a row that is not of it)."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Text | Chat]


def recognise(columns: Collection[str]) -> Format:
    """The format whose columns are all there, the first of :data:`FORMATS` if several fit; other columns are ignored.

    Raises:
        UserError: none fits; the message lists the columns, the formats and the nearest names.
    """
    for known in FORMATS.values():
        if set(known.columns) <= set(columns):
            return known
    formats = "; ".join(" + ".join(known.columns) for known in FORMATS.values())
    raise UserError(
        f"no format fits the columns {sorted(map(str, columns))}: known are {formats}{_nearest(columns)}; "
        "rename the columns"
    )


def _nearest(columns: Collection[str]) -> str:
    wanted = {column for known in FORMATS.values() for column in known.columns}
    for column in sorted(map(str, set(columns) - wanted)):
        if near := difflib.get_close_matches(column.lower(), wanted - set(columns), n=1):
            return f" (is {column!r} meant to be {near[0]!r}?)"
    return ""


def _read_text(row: Row) -> Text:
    return Text(prompt="", completion=_string(row, "text"))


def _read_prompt_completion(row: Row) -> Text | Chat:
    if isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list):
        return _read_prompt_completion_turns(row)
    example = Text(_string(row, "prompt"), _string(row, "completion"))
    if not example.completion:
        raise UserError("the completion is empty: there is nothing to learn")
    return example


def _read_prompt_completion_turns(row: Row) -> Chat:
    prompt, completion = _turns(row, "prompt"), _turns(row, "completion")
    return Chat([*prompt, *completion], _answers(completion, "completion", offset=len(prompt)))


def _read_messages(row: Row) -> Chat:
    messages = _turns(row, "messages")
    return Chat(messages, _answers(messages, "messages"))


# The most structured first: many data sets carry a rendered `text` or a bare `prompt` beside their `messages`.
FORMATS: dict[str, Format] = {
    "messages": Format("messages", ("messages",), _read_messages),
    "prompt_completion": Format("prompt_completion", ("prompt", "completion"), _read_prompt_completion),
    "text": Format("text", ("text",), _read_text),
}


def _value(row: Row, column: str) -> Any:
    if column not in row:
        raise UserError(f"no {column!r} in this row, it has {sorted(map(str, row))}")
    return row[column]


def _string(row: Row, column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str):
        raise UserError(f"{column!r} must be a string, got {_kind(value)}")
    return value


def _turns(row: Row, column: str) -> list[Message]:
    value = _value(row, column)
    if not isinstance(value, list) or not value:
        raise UserError(f"{column!r} must be a list of messages, got {_kind(value)}")
    return [_message(turn, f"message {number} of {column!r}") for number, turn in enumerate(value, 1)]


def _message(turn: Any, where: str) -> Message:
    """A turn without the keys that hold ``None``: Parquet gives every row the keys of every other row."""
    if not isinstance(turn, Mapping):
        raise UserError(f"{where} must be an object with 'role' and 'content', got {_kind(turn)}")
    message = {key: value for key, value in turn.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise UserError(f"{where} must have a 'role' such as 'user' or 'assistant', got {_kind(role)}")
    is_parts = isinstance(content, list) and all(isinstance(part, Mapping) for part in content)
    if not isinstance(content, str) and not is_parts and not (content is None and message.get("tool_calls")):
        raise UserError(f"{where} must have a string 'content', got {_kind(content)}")
    return message


def _answers(messages: list[Message], column: str, offset: int = 0) -> list[int]:
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        roles = sorted({message["role"] for message in messages})
        raise UserError(f"{column!r} has no turn of the role 'assistant' to learn, its roles are {roles}")
    for number in answers:
        if not messages[number].get("content") and not messages[number].get("tool_calls"):
            raise UserError(f"message {number + 1} of {column!r} is an empty assistant turn: there is nothing to learn")
    return [offset + number for number in answers]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, str | list | dict) and not value:
        return f"an empty {type(value).__name__}"
    return type(value).__name__
