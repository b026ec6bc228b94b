"""Chat turns: read from a row's column, checked, and brought into one shape. Knows no template.

A turn is ``{"role", "content", ...}`` with a role of :data:`ROLES` and text as its content (``None`` for an answer that
only calls tools). Keys that this file does not know (a name, a call's id) are handed to the template as they are.
"""

from collections.abc import Collection, Mapping
from typing import Any

from relax.data.examples import Message, Row
from relax.data.formats.cells import kind, shown, suggestion, value, without_nulls
from relax.data.formats.tools import read_calls, read_written_calls
from relax.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
}
_WRITTEN_CALLS = ("function_call", "tool_call")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # templates write them as they write the content
_TURN_WEIGHTS = ("weight", "train")  # the OpenAI interface's word for it, and axolotl's


def read_turns(row: Row, column: str) -> list[Message]:
    """The turns of a column of ``{"role", "content"}`` objects, at least one.

    Raises:
        UserError: no such list; a turn without a known role, or without text where it calls no tool.
    """
    return [_message(turn, where) for turn, where in _numbered(row, column)]


def read_conversation(row: Row, column: str) -> list[Message]:
    """The turns of a ShareGPT column: ``{"from", "value"}`` objects with a role of :data:`SHAREGPT_ROLES`.

    ``role`` and ``content`` are understood as well. A ``function_call`` turn becomes an assistant's tool calls. The
    text of the row's ``system`` column, if it has one, becomes the first turn.

    Raises:
        UserError: as :func:`read_turns`; a ``system`` column beside a system turn that says something else.
    """
    turns = [_message(_translated(turn, where), where) for turn, where in _numbered(row, column)]
    system = row.get("system")
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise UserError(f"'system' must be a string, got {kind(system)}")
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"] != system:
        raise UserError(f"{column!r} begins with a system turn, and the column 'system' says something else; keep one")
    return turns


def find_answers(messages: list[Message], column: str, offset: int = 0) -> list[int]:
    """Where the assistant's turns to learn stand, counted from ``offset``: all but those that say ``"weight": 0``.

    Raises:
        UserError: there is none, or one is empty, or has another weight than 0 and 1, or one between them is left out.
    """
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        roles = sorted({message["role"] for message in messages})
        raise UserError(f"{column!r} has no turn of the role 'assistant' to learn, its roles are {roles}")
    learnt = [number for number in answers if _is_learnt(messages[number], f"message {number + 1} of {column!r}")]
    if not learnt:
        raise UserError(f"every assistant turn of {column!r} has the weight 0: there is nothing to learn")
    # Markers of a template mark every answer, and only what is before the first or behind the last can be told apart.
    if learnt != [number for number in answers if learnt[0] <= number <= learnt[-1]]:
        raise UserError(
            f"{column!r} has a turn of weight 0 between learnt ones: cut the conversation into several rows"
        )
    return [offset + number for number in learnt]


def _is_learnt(message: Message, where: str) -> bool:
    for key in _TURN_WEIGHTS:
        if message.get(key, 1) not in (0, 1):
            raise UserError(f"{where} has {key!r}={shown(message[key])}: a turn is learnt (1) or not (0)")
    if any(message.get(key, 1) == 0 for key in _TURN_WEIGHTS):
        return False
    if not message["content"] and not message.get("tool_calls"):
        raise UserError(f"{where} is an empty assistant turn: there is nothing to learn")
    return True


def _numbered(row: Row, column: str) -> list[tuple[Message, str]]:
    """Each turn, as a dict of its own without nulls, and what to call it in a message."""
    turns = value(row, column)
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{column!r} must be a list of messages, got {kind(turns)}")
    places = (f"message {number} of {column!r}" for number in range(1, len(turns) + 1))
    return [(_object(turn, where), where) for turn, where in zip(turns, places, strict=True)]


def _message(message: Message, where: str) -> Message:
    """The turn, checked and in one shape."""
    _check_role(message, where)
    calls = read_calls(message.pop("tool_calls", []), f"'tool_calls' of {where}")
    if (call := message.pop("function_call", None)) is not None:  # what one call was before there could be several
        calls += read_calls([call], f"'function_call' of {where}")
    if calls and message["role"] != "assistant":
        raise UserError(f"{where} has 'tool_calls' and the role {message['role']!r}: only the assistant calls tools")
    if calls:
        message["tool_calls"] = calls
    # A call without text has the content None, as the OpenAI interface gives it.
    message["content"] = None if calls and "content" not in message else _text(message.get("content"), where)
    for key in THOUGHT_KEYS:
        if key in message and not isinstance(message[key], str):
            raise UserError(f"{where} must have a string {key!r}, got {kind(message[key])}")
    return message


def _object(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise UserError(f"{where} must be an object with 'role' and 'content', got {kind(turn)}")
    message: Message = without_nulls(turn, where)
    return message


def _translated(turn: Message, where: str) -> Message:
    """A ShareGPT turn in our words."""
    role, content = turn.pop("from", turn.get("role")), turn.pop("value", turn.pop("content", None))
    if not isinstance(role, str) or not role:
        raise UserError(f"{where} must have a 'from' such as 'human' or 'gpt', got {kind(role)}")
    if role not in SHAREGPT_ROLES:
        raise _unknown_role(role, SHAREGPT_ROLES, where)
    if role in _WRITTEN_CALLS:
        return {**turn, "role": "assistant", "tool_calls": read_written_calls(content, where)}
    return {**turn, "role": SHAREGPT_ROLES[role], "content": content}


def _check_role(message: Message, where: str) -> None:
    role = message.get("role")
    if "from" in message or (isinstance(role, str) and role in SHAREGPT_ROLES.keys() - ROLES):
        raise UserError(
            f"{where} is a ShareGPT turn, which is read from a column 'conversations' only: "
            'rename the column with --columns="{conversations: NAME}"'
        )
    if not isinstance(role, str) or not role:
        raise UserError(f"{where} must have a 'role' such as 'user' or 'assistant', got {kind(role)}")
    if role not in ROLES:
        raise _unknown_role(role, ROLES, where)


def _unknown_role(role: str, known: Collection[str], where: str) -> UserError:
    names = ", ".join(known)
    return UserError(f"{where} has the unknown role {shown(role)}: known are {names}{suggestion(role, known)}")


def _text(content: Any, where: str) -> str:
    """The content's text; of text in parts, the parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UserError(f"{where} must have a string 'content', got {kind(content)}")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        text: str = part["text"]
        return text
    found = shown(part.get("type")) if isinstance(part, Mapping) else kind(part)
    raise UserError(f"{where} must have text as its 'content', got a part of another kind: {found}")
