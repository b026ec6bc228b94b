"""How a reward model reads a prompt and an answer: as text, as token ids, and in which batches. Knows no model.

Training (``trainers.reward_trainer``) and scoring (``relax.rewards.reward_model``) both read by it, so that a model is
asked what it was trained on.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from relax.data.chat.template import ChatTemplate
from relax.data.chat.template_fit import in_a_form_that_fits
from relax.data.examples import Message, Tool
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns: TypeAlias = str | list[Message]
Inputs: TypeAlias = dict[str, list[int]]
"""What a tokenizer gives for one text: ``input_ids``, and what else the model takes."""


class Reading(NamedTuple):
    """A prompt with an answer, as a model takes it."""

    inputs: Inputs
    unread_tokens: int = 0
    """Cut off at the beginning."""

    @property
    def num_tokens(self) -> int:
        """Those that are read."""
        return len(self.inputs["input_ids"])


class AnswerReader:
    """Reads an answer behind its prompt.

    A tokenizer with a chat template writes a conversation, one with a separator token (encoders) takes the two as a
    pair, any other as one text. What is longer than ``max_length`` loses its beginning.

    Args:
        tokenizer: stays as it is; a copy is worked with.
        max_length: tokens of prompt and answer together.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        self.max_length = max_length
        self.tokenizer = copy.deepcopy(tokenizer)  # truncation leaves its traces in a tokenizer
        self.tokenizer.truncation_side = "left"

    def read(
        self, prompts: Sequence[Turns], answers: Sequence[Turns], tools: Sequence[list[Tool] | None] | None = None
    ) -> list[Reading]:
        """Each answer behind its prompt; ``tools`` are those that the template may show.

        Raises:
            UserError: one of them is messages and the tokenizer has no chat template, or the template fails on them.
        """
        shown = [None] * len(prompts) if tools is None else tools
        return self.tokenize([self.write(*each) for each in zip(prompts, answers, shown, strict=True)])

    def write(self, prompt: Turns, answer: Turns, tools: list[Tool] | None = None) -> tuple[str, ...]:
        """The text, or the two of a pair, that the tokenizer is asked for.

        Raises:
            UserError: as ``read``.
        """
        if self.tokenizer.chat_template is not None:
            turns = [*_turns(prompt, "user"), *_turns(answer, "assistant")]
            return (in_a_form_that_fits(turns, lambda messages: self._template.render(messages, tools=tools)),)
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise UserError(
                "the reward model's tokenizer has no chat template, and the prompts are messages; give text, or a "
                "tokenizer with a template"
            )
        return (prompt, answer) if self.tokenizer.sep_token is not None else (prompt + answer,)

    def tokenize(self, written: Sequence[tuple[str, ...]]) -> list[Reading]:
        """What ``write`` gave, as ids."""
        whole = self._encode(written)
        long = [i for i, inputs in enumerate(whole) if len(inputs["input_ids"]) > self.max_length]
        short = dict(zip(long, self._encode([written[i] for i in long], truncation=True), strict=True))
        return [
            Reading(short.get(i, inputs), len(inputs["input_ids"]) - len(short.get(i, inputs)["input_ids"]))
            for i, inputs in enumerate(whole)
        ]

    def _encode(self, written: Sequence[tuple[str, ...]], truncation: bool = False) -> list[Inputs]:
        if not written:
            return []
        encoded = self.tokenizer(
            *map(list, zip(*written, strict=True)),
            add_special_tokens=self.tokenizer.chat_template is None,  # a template writes them itself
            truncation=truncation,
            max_length=self.max_length if truncation else None,
            verbose=False,
        )
        return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)


def score_by_length(
    rows: Sequence[Reading], batch_size: int, score: Callable[[list[Inputs]], list[float]]
) -> list[float]:
    """``score`` of batches of rows of like length, in the order of ``rows``."""
    by_length = sorted(range(len(rows)), key=lambda i: rows[i].num_tokens)
    scores = [0.0] * len(rows)
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        for i, value in zip(batch, score([rows[i].inputs for i in batch]), strict=True):
            scores[i] = value
    return scores


def score_texts(
    reader: AnswerReader,
    prompts: Sequence[Turns],
    completions: Sequence[str],
    *,
    batch_size: int,
    score: Callable[[list[Inputs]], list[float]],
) -> list[float]:
    """``score`` of each completion behind its prompt, with a warning where a beginning is not read.

    Raises:
        UserError: as ``AnswerReader.read``.
    """
    rows = reader.read(prompts, completions)
    if any(row.unread_tokens for row in rows):
        warnings.warn(
            f"reward model: some completions with their prompts are longer than its limit of {reader.max_length} "
            "tokens, and their beginning is not read",
            stacklevel=3,
        )
    return score_by_length(rows, batch_size, score)


def _turns(text: Turns, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
