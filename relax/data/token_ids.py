"""Texts -> token ids with a loss mask. Knows no rows and no chat template.

Prompt and completion are joined as ids, not as text, so the boundary is exact and equals what generation sees. A
conversation is tokenized whole, as the template writes it, and cut at the spans to learn.
"""

from functools import cached_property
from itertools import accumulate, chain
from string import ascii_letters, digits
from typing import TYPE_CHECKING

import numpy as np

from relax.data.chat import Rendered
from relax.data.examples import Text, Tokens
from relax.data.tokenized import Sample
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


class TokenIds:
    """Tokenizes texts and puts their ids together."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.stop: Ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def require_eos(self) -> None:
        """Plain text ends with the eos token.

        Raises:
            UserError: the tokenizer has none.
        """
        if not self.stop:
            raise UserError("the tokenizer has no eos token, so the model could not learn to stop: set its eos_token")

    def tokenize(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, as it stands: nothing put before or behind it."""
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[Ids] = encoded["input_ids"]
        return ids

    def join(self, text: Text, ids: list[Ids], *, learn_all: bool) -> Sample:
        """The ids the tokenizer itself opens a text with, prompt, completion, eos; neither opening nor eos twice.

        ``ids`` are those of prompt and completion; the completion and its eos are learnt.

        Raises:
            UserError: the tokenizer has no token for the completion.
        """
        prompt, completion = ids
        if text.completion and not completion:
            raise UserError(f"the tokenizer has no token for anything in {text.completion[:40]!r}")
        opened = (prompt + completion)[: len(self.opening)] == self.opening
        read = prompt if opened else self.opening + prompt
        stop = self.stop if completion and completion[-1:] != self.stop else []
        learnt = completion + stop
        return Sample.of(read + learnt, [learn_all] * len(read) + [True] * len(learnt))

    def take(self, tokens: Tokens, *, learn_all: bool) -> Sample:
        """Ids that come tokenized, as they are.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        highest = max(tokens.input_ids, default=0)
        if highest >= self.vocabulary:
            raise UserError(
                f"token id {highest} at position {tokens.input_ids.index(highest)} is not in the vocabulary of "
                f"{self.vocabulary} tokens: the row was made with another tokenizer"
            )
        return Sample.of(tokens.input_ids, tokens.loss_mask if not learn_all else [True] * len(tokens.input_ids))

    def cut(self, rendered: Rendered, ids: list[Ids]) -> Sample:
        """The conversation's ids, learnt between its cuts; a token over a cut is replaced by the pieces' own tokens.

        ``ids`` are those of the whole text and of its pieces (all but the last, which is the rest), compared as ids.
        Where they differ, either a piece on its own begins differently (SentencePiece puts a space before a text) and
        prefixes decide, or a token spans a cut: generation would never see it, because it starts from the prompt's own
        ids.

        Raises:
            UserError: the tokenizer has no token for the text, or cannot tokenize the two sides of a cut.
        """
        whole, pieces = ids[0], ids[1:]
        if not whole:
            raise UserError(f"the tokenizer has no token for anything in {rendered.text[:40]!r}")
        ends = [*accumulate(map(len, pieces))]
        if whole[: ends[-1]] != [*chain.from_iterable(pieces)]:
            prefixes = self.tokenize([rendered.text[:cut] for cut in rendered.cuts[:-1]])
            ends = [len(prefix) for prefix in prefixes]
            if any(whole[: len(prefix)] != prefix for prefix in prefixes):
                whole, ends = self._piecewise(rendered, whole)
        return Sample.of(whole, np.repeat([False, True] * len(rendered.spans), np.diff([0, *ends, len(whole)])))

    def _piecewise(self, rendered: Rendered, whole: Ids) -> tuple[Ids, list[int]]:
        """The ids of the pieces one by one, and where each but the last ends; they must say what ``whole`` says."""
        pieces = self.tokenize(rendered.pieces)
        ids = [*chain.from_iterable(pieces)]
        if self.tokenizer.decode(ids) != self.tokenizer.decode(whole):
            raise UserError("a token spans the border of an answer, and this tokenizer cannot tokenize its two parts")
        return ids, [*accumulate(map(len, pieces[:-1]))]

    @cached_property
    def vocabulary(self) -> int:
        """One more than the highest id."""
        return max(len(self.tokenizer), 1 + max(self.tokenizer.added_tokens_decoder, default=0))

    @cached_property
    def opening(self) -> Ids:
        """What the tokenizer by itself puts before a text: nothing, or its bos token."""
        for letter in ascii_letters + digits:
            bare = self.tokenize([letter])[0]
            if bare:
                whole: Ids = self.tokenizer(letter)["input_ids"]
                return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])
        return []
