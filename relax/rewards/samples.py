"""What a reward function is shown, and what it may answer. Knows neither functions nor tokenizers."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from relax.data.examples import Message, Row
from relax.errors import TrainingStopped


class Sample(NamedTuple):
    """One completion to be scored.

    Attributes:
        prompt: Text or messages, as the row has it.
        completion: The text that the policy wrote, without what ended it.
        row: The row's columns (a column named as one of the other attributes cannot be asked for).
        completion_ids: The tokens that the policy sampled, end of text included; None where only texts are scored.
        truncated: The completion was cut off by the limit on its length.
    """

    prompt: str | list[Message]
    completion: str
    row: Row
    completion_ids: Sequence[int] | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Fault:
    """Why there is no score, as the end of a sentence that begins with the function's name.

    ``over_limit``: it took too long, or the system ended its process, which a completion can bring about.
    """

    what: str
    over_limit: bool = False


Score: TypeAlias = float | None  # None: the function does not apply to this completion
Outcome: TypeAlias = float | Fault | None


class RewardFailed(TrainingStopped):
    """A reward function gave no score; names the function, what it did, the prompt and the completion."""


def quote(sample: Sample, characters: int = 200) -> str:
    """Prompt and completion on one line, the middle of long ones left out."""
    prompt = sample.prompt if isinstance(sample.prompt, str) else str(sample.prompt[-1].get("content"))
    return f"prompt {_shorten(prompt, characters)}, completion {_shorten(sample.completion, characters)}"


def _shorten(text: str, characters: int) -> str:
    if len(text) <= characters:
        return repr(text)
    return f"{text[: characters // 2]!r} ... {text[-characters // 2 :]!r}"


def one_line(text: str, characters: int = 300) -> str:
    """An error's message as part of a line."""
    return textwrap.shorten(text, characters, placeholder=" ...")
