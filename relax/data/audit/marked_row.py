"""One row as text again, with what of it is trained: long stretches are cut short around their borders.

Not the place to look for exact bytes: a character that two stretches share shows as a replacement character.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from relax.data.tokens.tokenized import Sample
from relax.visible_text import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind: TypeAlias = Literal["read", "trained", "left out"]

SHOWN_TOKENS = 320
SHOWN_STRETCHES = 12
_CONTEXT_TOKENS = 8  # a tokenizer that writes spaces before words needs to see what stands before a stretch


@dataclass(frozen=True)
class Stretch:
    """Text between two borders of the loss mask, or how much was left out there."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class MarkedRow:
    """A row and its stretches, in order; ``number`` counts the rows of the source from 1."""

    number: int
    tokens: int
    trained_tokens: int
    stretches: tuple[Stretch, ...]


def mark_row(sample: Sample, number: int, tokenizer: "PreTrainedTokenizerBase") -> MarkedRow:
    """The row as text, special tokens written out."""
    mask = sample.loss_mask
    runs = [*pairwise([0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)])]
    return MarkedRow(number, len(mask), int(mask.sum()), tuple(_stretches(sample, runs, tokenizer)))


def _stretches(sample: Sample, runs: list[tuple[int, int]], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Stretch]:
    """Whole runs if the row is short; else the first and last of them, each cut to its share of what is shown."""
    half = SHOWN_STRETCHES // 2
    hidden = runs[half:-half]
    shown = runs[:half] + runs[max(half, len(runs) - half) :]
    room = len(sample.input_ids) if len(sample.input_ids) <= SHOWN_TOKENS else SHOWN_TOKENS // len(shown)
    for at, (start, end) in enumerate(shown):
        if at == half and hidden:
            yield _left_out(sample, hidden[0][0], hidden[-1][1])
        kind: Kind = "trained" if sample.loss_mask[start] else "read"
        if end - start <= room + room // 2:  # else what is left out would hardly be longer than the note on it
            yield Stretch(kind, _decode(tokenizer, sample, start, end))
            continue
        head, tail = start + room // 2, end - room // 2
        yield Stretch(kind, _decode(tokenizer, sample, start, head))
        yield _left_out(sample, head, tail)
        yield Stretch(kind, _decode(tokenizer, sample, tail, end))


def _left_out(sample: Sample, start: int, end: int) -> Stretch:
    tokens, trained = end - start, int(sample.loss_mask[start:end].sum())
    of_them = "" if trained == 0 else "trained " if trained == tokens else f"({trained:,} trained) "
    return Stretch("left out", f" … {tokens:,} {of_them}tokens … ")


def _decode(tokenizer: "PreTrainedTokenizerBase", sample: Sample, start: int, end: int) -> str:
    """The text that these tokens add to what stands before them, controls made visible."""
    first = max(0, start - _CONTEXT_TOKENS)
    before, both, alone = (
        tokenizer.decode(sample.input_ids[a:b].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for a, b in ((first, start), (first, end), (start, end))
    )
    text: str = both[len(before) :] if both.startswith(before) else alone
    return visible(text, lines=True)
