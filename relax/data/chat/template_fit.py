"""Does a chat template fit a conversation? The forms of a tool call to offer it, and what it silently leaves out."""

import json
from typing import Any

from relax.data.chat.template import OTHER_TEMPLATE, ChatTemplate, TemplateFails
from relax.data.examples import Chat, Message
from relax.errors import UserError

_PLAIN_ROLES = {"system", "user", "assistant"}


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
    """Refuse a conversation of which the template does not write the tools, a tool call, or a turn that is read.

    ``text`` is what the template wrote. Unless that plainly holds everything, each thing to write gets a name of its
    own, and the conversation is written once more: what is left out is found even if something else says the same.

    Raises:
        TemplateFails: it leaves out a tool call.
        UserError: it leaves out a turn, or the tools.
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
    for at, message in enumerate(chat.messages):
        if any(_label(at, call) not in written for call in range(len(message.get("tool_calls", [])))):
            raise TemplateFails(f"the chat template leaves out a tool call of message {at + 1}; {OTHER_TEMPLATE}")
        if _is_read(message) and _label(at) not in written:
            raise UserError(
                f"the chat template leaves out message {at + 1}, of the role {message['role']!r}; "
                f"{OTHER_TEMPLATE}, or remove such turns"
            )


def _is_plainly_there(chat: Chat, text: str) -> bool:
    """Whether there are no tools about, and every turn is in the text word for word."""
    return not chat.tools and all(
        message["role"] in _PLAIN_ROLES
        and "tool_calls" not in message
        and (message["role"] == "assistant" or message["content"].strip() in text)
        for message in chat.messages
    )


def _is_read(message: Message) -> bool:
    return message["role"] != "assistant" and bool((message.get("content") or "").strip())


def _label(*place: object) -> str:
    """A name for a place in the conversation, between code points that no text holds."""
    return f"\ufdd2{'.'.join(map(str, place))}\ufdd3"


def _labelled(message: Message, at: int) -> Message:
    """The turn with a label for its content if it is read, and for the name of each function it calls."""
    labelled = {**message, "content": _label(at)} if _is_read(message) else dict(message)
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
