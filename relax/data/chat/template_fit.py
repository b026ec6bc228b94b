"""Does a chat template fit a conversation? The forms of a tool call to offer it, and what it silently leaves out."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from relax.data.chat.template import OTHER_TEMPLATE, ChatTemplate, TemplateFails
from relax.data.examples import Chat, Message
from relax.data.formats.messages import THOUGHT_KEYS
from relax.errors import UserError

_T = TypeVar("_T")
_END_OF_THOUGHT = "</think>"
_PLAIN_ROLES = {"system", "user", "assistant"}


def in_a_form_that_fits(messages: list[Message], write: Callable[[list[Message]], _T]) -> _T:
    """What ``write`` makes of the messages in the first of the forms of :func:`tool_forms` that it can write.

    Raises:
        TemplateFails: it fails on all of them; what it said of the first.
    """
    failures: list[TemplateFails] = []
    for form in tool_forms(messages):
        try:
            return write(form)
        except TemplateFails as failure:
            failures.append(failure)
    raise failures[0]


def tool_forms(messages: list[Message]) -> list[list[Message]]:
    """The messages in the forms that templates expect of turns which call tools, the most usual first.

    transformers documents a turn without content, and objects as arguments; the OpenAI interface gives the content
    ``None``, and arguments in a string. Templates are written for either or for a mixture, and raise on the others.
    """
    if not any("tool_calls" in message for message in messages):
        return [messages]
    bare = [{key: value for key, value in message.items() if value is not None} for message in messages]
    none = [{"content": None, **message} if "tool_calls" in message else message for message in bare]
    return [bare, none, [*map(_as_sent, none)]]


def check_nothing_left_out(template: ChatTemplate, chat: Chat, text: str) -> None:
    """Refuse a conversation of which the template does not write the tools, a tool call, a turn or the last thought.

    Thoughts of earlier answers are taken out by most templates that know any: generation does not see them either.

    ``text`` is what the template wrote. Unless that plainly holds everything, each thing to write gets a name of its
    own, and the conversation is written once more: what is left out is found even if something else says the same.

    Raises:
        TemplateFails: it leaves out a tool call.
        UserError: it leaves out a turn or an answer's text, the tools, or the last answer's thought.
    """
    if _is_plainly_there(chat, text):
        return
    tools = [_with_name(tool, _label("tool", at)) for at, tool in enumerate(chat.tools or [])]
    messages = [_labelled(message, at) for at, message in enumerate(chat.messages)]
    written = template.render(messages, tools=tools)
    if tools and not any(_label("tool", at) in written for at in range(len(tools))):
        raise UserError(
            "the chat template does not show the row's tools to the model; "
            f"{OTHER_TEMPLATE}, or remove the column 'tools'"
        )
    for at in range(len(chat.messages)):
        _check_turn(chat, at, written)


def _check_turn(chat: Chat, at: int, written: str) -> None:
    message = chat.messages[at]
    if any(_label(at, call) not in written for call in range(len(message.get("tool_calls", [])))):
        raise TemplateFails(f"the chat template leaves out a tool call of message {at + 1}; {OTHER_TEMPLATE}")
    if _must_be_there(chat, at) and _says(message) and _label(at) not in written:
        if "tool_calls" in message:
            what, advice = f"what message {at + 1} says beside its tool calls", "remove that text"
        else:
            what, advice = f"message {at + 1}, of the role {message['role']!r}", "remove such turns"
        raise UserError(f"the chat template leaves out {what}; {OTHER_TEMPLATE}, or {advice}")
    is_last_answer = [at] == chat.answers[-1:] and at == len(chat.messages) - 1
    if is_last_answer and _thinks(message) and _label(at, "thought") not in written:
        raise UserError(
            f"the chat template leaves out the thought of message {at + 1}; {OTHER_TEMPLATE}, or remove the thoughts"
        )


def _is_plainly_there(chat: Chat, text: str) -> bool:
    """Whether there are no tools and no thoughts about, and every turn is in the text word for word."""
    return not chat.tools and all(
        message["role"] in _PLAIN_ROLES
        and "tool_calls" not in message
        and not _thinks(message)
        and (not _must_be_there(chat, at) or message["content"].strip() in text)
        for at, message in enumerate(chat.messages)
    )


def _must_be_there(chat: Chat, at: int) -> bool:
    """Whether this turn is an answer to learn, or somebody else's."""
    return at in chat.answers or chat.messages[at]["role"] != "assistant"


def _says(message: Message) -> bool:
    return bool((message.get("content") or "").strip())


def _thinks(message: Message) -> bool:
    """Whether the turn holds a thought, beside its content or at the beginning of it."""
    beside = any(message.get(key, "").strip() for key in THOUGHT_KEYS)
    return beside or _END_OF_THOUGHT in (message.get("content") or "")


def _label(*place: object) -> str:
    """A name for a place in the conversation, between code points that no text holds."""
    return f"\ufdd2{'.'.join(map(str, place))}\ufdd3"


def _labelled(message: Message, at: int) -> Message:
    """The turn with a label for its content, for its thought, and for the name of each function it calls."""
    labelled, thought = dict(message), _label(at, "thought")
    if _says(message):
        within = f"<think>\n{thought}\n{_END_OF_THOUGHT}\n\n" if _END_OF_THOUGHT in message["content"] else ""
        labelled["content"] = within + _label(at)
    labelled |= {key: thought for key in THOUGHT_KEYS if message.get(key, "").strip()}
    if "tool_calls" in message:
        labelled["tool_calls"] = [_with_name(call, _label(at, n)) for n, call in enumerate(message["tool_calls"])]
    return labelled


def _with_name(function: dict[str, Any], name: str) -> dict[str, Any]:
    """A tool or a call, with or without its wrapping, under another name."""
    if isinstance(function.get("function"), dict):
        return {**function, "function": {**function["function"], "name": name}}
    return {**function, "name": name}


def _as_sent(message: Message) -> Message:
    """A turn with the arguments of its calls as JSON in a string."""
    if "tool_calls" not in message:
        return message
    return {
        **message,
        "tool_calls": [{**call, "function": _packed(call["function"])} for call in message["tool_calls"]],
    }


def _packed(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**function, "arguments": written}
