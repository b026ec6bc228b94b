"""What a row means, whatever its columns are called: the things that trainers and rollouts read. Knows no tokenizer."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

Row: TypeAlias = Mapping[str, Any]
Message: TypeAlias = dict[str, Any]
Tool: TypeAlias = dict[str, Any]


class Text(NamedTuple):
    """Plain text: ``prompt`` (may be empty) is read, ``completion`` is learnt. A ``text`` row is all completion."""

    prompt: str
    completion: str


class Chat(NamedTuple):
    """A conversation, and the positions in it (increasing, at least one) of the assistant turns to learn.

    ``tools`` are the JSON schemas that the chat template may show to the model.
    """

    messages: list[Message]
    answers: list[int]
    tools: list[Tool] | None = None


class Tokens(NamedTuple):
    """A row that comes tokenized; ``loss_mask`` says of each token whether it is learnt."""

    input_ids: list[int]
    loss_mask: list[bool]


class Prompt(NamedTuple):
    """What a policy is asked: text, or messages that end before its answer."""

    prompt: str | list[Message]
    tools: list[Tool] | None = None


class Preference(NamedTuple):
    """A prompt with a better and a worse answer, all text or all messages. The prompt may be empty."""

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]
    tools: list[Tool] | None = None


Example: TypeAlias = Text | Chat | Tokens | Prompt | Preference
