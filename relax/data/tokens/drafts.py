"""A row on its way to a sample: which texts of it are to be tokenized, and how their ids are put together.

Prompt and completion are joined as ids, not as text, so the boundary is exact and equals what generation sees; the
completion is tokenized as what continues a text. A conversation is tokenized whole, as the template writes it, and cut
at the spans to learn.
"""

from bisect import bisect_right
from itertools import accumulate, chain
from typing import Protocol

import numpy as np

from relax.data.chat.learning import Rendered
from relax.data.examples import Text, Tokens
from relax.data.tokens.token_ids import Ids, TokenIds
from relax.data.tokens.tokenized import Sample
from relax.errors import UserError


class Draft(Protocol):
    """A row that is read, not yet tokenized."""

    texts: list[str]
    """What to tokenize."""

    def sample(self, ids: list[Ids]) -> Sample:
        """The sample, from the ids of ``texts``.

        Raises:
            UserError: it cannot be made; the message does not name the row.
        """
        ...


class PlainText:
    """Prompt and completion."""

    def __init__(self, tokenizer: TokenIds, text: Text, learn_all: bool):
        self.tokenizer, self.text, self.learn_all = tokenizer, text, learn_all
        self.lead = tokenizer.lead if text.prompt else ""
        self.texts = [text.prompt, self.lead + text.completion]

    def sample(self, ids: list[Ids]) -> Sample:
        """The ids the tokenizer itself opens a text with, prompt, completion, eos; neither opening nor eos twice."""
        prompt, completion = ids
        if self.lead:
            completion = self.tokenizer.behind_lead(self.text.completion, completion)
        if self.text.completion and not completion:
            raise _no_token(self.text.completion)
        opening, eos = self.tokenizer.opening, self.tokenizer.stop
        read = prompt if (prompt + completion)[: len(opening)] == opening else opening + prompt
        learnt = completion + (eos if completion and completion[-1:] != eos else [])
        return Sample.of(read + learnt, [self.learn_all] * len(read) + [True] * len(learnt))


class ReadyTokens:
    """Ids that come tokenized, as they are.

    Raises:
        UserError: an id that is not in the vocabulary.
    """

    def __init__(self, tokenizer: TokenIds, tokens: Tokens, learn_all: bool):
        highest = max(tokens.input_ids, default=0)
        if highest >= tokenizer.vocabulary:
            raise UserError(
                f"token id {highest} at position {tokens.input_ids.index(highest)} is not in the vocabulary of "
                f"{tokenizer.vocabulary} tokens: the row was made with another tokenizer"
            )
        self.texts: list[str] = []
        self.tokens, self.learn_all = tokens, learn_all

    def sample(self, ids: list[Ids]) -> Sample:
        """The row itself."""
        return Sample.of(self.tokens.input_ids, [mark or self.learn_all for mark in self.tokens.loss_mask])


class Conversation:
    """A conversation as its template writes it.

    Its tokens are cut where what is read borders on what is learnt, and that place is looked for as generation sees it:
    the text up to the cut must give the tokens up to the cut. Added tokens (``<|im_start|>``) part a text before it is
    tokenized, so only the text from the last one on is tokenized once more. Where it does not give the same, whole
    prefixes decide (a tokenizer may count what stands before an added token), and where these do not either, a token
    spans the cut: generation would never see it, and the pieces' own tokens take its place.
    """

    def __init__(self, tokenizer: TokenIds, rendered: Rendered):
        self.tokenizer, self.rendered = tokenizer, rendered
        text, cuts = rendered.text, rendered.cuts[:-1]
        found = [*tokenizer.any_added.finditer(text)]
        starts, ends = [0, *(match.start() for match in found)], [match.end() for match in found]
        self.added = [tokenizer.added[match[0]] for match in found]
        self.num_before = [bisect_right(ends, cut) for cut in cuts]
        self.texts = [text, *(text[starts[before] : cut] for before, cut in zip(self.num_before, cuts, strict=True))]

    def sample(self, ids: list[Ids]) -> Sample:
        """The ids of the whole text, learnt between its cuts."""
        whole, tails = ids[0], ids[1:]
        if not whole:
            raise _no_token(self.rendered.text)
        ends = self._ends_of_tails(whole, tails)
        if ends is None:
            whole, ends = self._by_prefixes(whole)
        learnt = [False, True] * len(self.rendered.spans)
        return Sample.of(whole, np.repeat(learnt, np.diff([0, *ends, len(whole)])))

    def _ends_of_tails(self, whole: Ids, tails: list[Ids]) -> list[int] | None:
        """Where each tail ends in ``whole``; None: one is not there, or the added tokens are not those of the text."""
        places = [at for at, token in enumerate(whole) if token in self.tokenizer.added_ids]
        if [whole[at] for at in places] != self.added:
            return None
        begins = [[0, *places][before] for before in self.num_before]
        ends = [begin + len(tail) for begin, tail in zip(begins, tails, strict=True)]
        found = [whole[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return ends if found == tails else None

    def _by_prefixes(self, whole: Ids) -> tuple[Ids, list[int]]:
        prefixes = self.tokenizer.tokenize([self.rendered.text[:cut] for cut in self.rendered.cuts[:-1]])
        if all(whole[: len(prefix)] == prefix for prefix in prefixes):
            return whole, [len(prefix) for prefix in prefixes]
        pieces = self.tokenizer.tokenize(self.rendered.pieces)
        ids = [*chain.from_iterable(pieces)]
        if self.tokenizer.decode(ids) != self.tokenizer.decode(whole):
            raise UserError("a token spans the border of an answer, and this tokenizer cannot tokenize its two parts")
        return ids, [*accumulate(map(len, pieces[:-1]))]


def _no_token(text: str) -> UserError:
    return UserError(f"the tokenizer has no token for anything in {text[:40]!r}")
