"""Rows -> token ids and loss mask, a thousand rows to a call of the tokenizer. Reads no files, builds no batches.

Prompt and completion are joined as ids, not as text, so the boundary is exact and equals what generation sees. A
conversation is tokenized whole, as the template writes it, and cut at the spans to learn.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import accumulate, chain, islice
from string import ascii_letters, digits
from typing import TYPE_CHECKING, get_args

import numpy as np

from relax.data.chat import ChatRenderer, Rendered, TrainOn
from relax.data.formats import Format, Row, Text, recognise
from relax.data.sources import Rows, RowSubset
from relax.data.tokenized import Sample, TokenizationReport, TokenizedDataset
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
_ROWS_PER_CALL = 1000
_NO_TARGET = "empty text"
_CUT_AWAY = "no training target within max_length"


def tokenize_rows(
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None = None,
    train_on: TrainOn = "completion",
    where: str = "data",
    max_dropped_share: float = 0.05,
) -> TokenizedDataset:
    """Tokenize a data set and say of every token whether it is learnt.

    The first row decides the format. ``train_on``: "completion" learns completions and assistant turns (of a ``text``
    row, everything), "last" only the last assistant turn, "all" every token. Longer rows are cut at the end to
    ``max_length`` tokens. Rows left without a target are dropped; the data set's ``report`` counts both.

    Raises:
        UserError: a bad row (the message begins ``where:row N``, counted from 1); no row left; more than
            ``max_dropped_share`` of the rows dropped; a tokenizer without the eos token or chat template needed.
    """
    if max_length is not None and max_length < 2:
        raise UserError(f"--max_length must be at least 2, a token to read and one to predict, got {max_length}")
    if not len(rows):
        raise UserError(f"{where}: no rows")
    encoder = RowEncoder(rows[0], tokenizer, train_on, where)
    report = TokenizationReport()
    kept: list[tuple[int, Sample]] = []
    for number, sample in encoder.encode(zip(_numbers(rows), rows, strict=True)):
        report.rows += 1
        short = sample.head(max_length)
        if short.loss_mask.any():
            report.truncated += len(short.input_ids) < len(sample.input_ids)
            kept.append((number, short))
        else:
            report.dropped[_CUT_AWAY if sample.loss_mask.any() else _NO_TARGET] += 1
    report.without_end_of_turn = encoder.without_end_of_turn
    _check(report, where, max_length, max_dropped_share)
    return TokenizedDataset.from_samples([sample for _, sample in kept], [number for number, _ in kept], report)


def tokenize_row(row: Row, tokenizer: "PreTrainedTokenizerBase", *, train_on: TrainOn = "completion") -> Sample:
    """One row, whole, as :func:`tokenize_rows` does it.

    Raises:
        UserError: a bad row, or one without a target.
    """
    [(_, sample)] = RowEncoder(row, tokenizer, train_on, "data").encode([(0, row)])
    if not sample.loss_mask.any():
        raise UserError(f"data:row 1: {_NO_TARGET}: there is nothing to learn")
    return sample


class RowEncoder:
    """Encodes rows of the format that ``first_row`` has; ``without_end_of_turn`` counts open-ended chats."""

    def __init__(self, first_row: Row, tokenizer: "PreTrainedTokenizerBase", train_on: TrainOn, where: str):
        if train_on not in get_args(TrainOn):
            raise UserError(f"--train_on must be one of {', '.join(get_args(TrainOn))}, got {train_on!r}")
        self.tokenizer = tokenizer
        self.train_on: TrainOn = train_on
        self.where = where
        self.without_end_of_turn = 0
        self._stop: Ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        with _at(where):
            self.format: Format = recognise(_mapping(first_row).keys())

    def encode(self, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Sample]]:
        """A whole sample for each numbered row, in order."""
        numbered = iter(rows)
        while chunk := [*islice(numbered, _ROWS_PER_CALL)]:
            prepared = [self._prepare(number, row) for number, row in chunk]
            texts = [[*item] if isinstance(item, Text) else [item.text, *item.pieces[:-1]] for item in prepared]
            ids = iter(self._tokenize([*chain.from_iterable(texts)]))
            for (number, _), item, parts in zip(chunk, prepared, texts, strict=True):
                with self._at_row(number):
                    sample = self._assemble(item, [*islice(ids, len(parts))])
                yield number, sample

    def _prepare(self, number: int, row: Row) -> Text | Rendered:
        with self._at_row(number):
            example = self.format.read(_mapping(row))
        if isinstance(example, Text):
            if not self._stop:
                raise UserError(
                    "the tokenizer has no eos token, so the model could not learn to stop: set its eos_token"
                )
            prepared: Text | Rendered = example
        else:
            renderer = self._renderer  # outside of the row: a missing template is not the row's fault
            with self._at_row(number):
                prepared = renderer.learn(example, self.train_on)
        with self._at_row(number):
            _check_unicode(*prepared if isinstance(prepared, Text) else [prepared.text])
        return prepared

    def _assemble(self, item: Text | Rendered, ids: list[Ids]) -> Sample:
        return self._join(item, *ids) if isinstance(item, Text) else self._cut(item, ids[0], ids[1:])

    def _join(self, example: Text, prompt: Ids, completion: Ids) -> Sample:
        """The ids the tokenizer itself opens a text with, prompt, completion, eos; neither opening nor eos twice."""
        if example.completion and not completion:
            raise UserError(f"the tokenizer has no token for anything in {example.completion[:40]!r}")
        opened = (prompt + completion)[: len(self._opening)] == self._opening
        read = prompt if opened else self._opening + prompt
        stop = self._stop if completion and completion[-1:] != self._stop else []
        learnt = completion + stop
        return Sample.of(read + learnt, [self.train_on == "all"] * len(read) + [True] * len(learnt))

    def _cut(self, rendered: Rendered, whole: Ids, pieces: list[Ids]) -> Sample:
        """The conversation's ids, learnt between its cuts; a token over a cut is replaced by the pieces' own tokens.

        Whole and pieces (all but the last, which is the rest) are compared as ids. Where they differ, either a piece on
        its own begins differently (SentencePiece puts a space before a text) and prefixes decide, or a token spans a
        cut: generation would never see it, because it starts from the prompt's own ids.
        """
        if not whole:
            raise UserError(f"the tokenizer has no token for anything in {rendered.text[:40]!r}")
        self.without_end_of_turn += whole[-1] not in self._stop_ids
        ids, ends = whole, [*accumulate(map(len, pieces))]
        if whole[: ends[-1]] != [*chain.from_iterable(pieces)]:
            prefixes = self._tokenize([rendered.text[:cut] for cut in rendered.cuts[:-1]])
            ends = [len(prefix) for prefix in prefixes]
            if any(whole[: len(prefix)] != prefix for prefix in prefixes):
                ids, ends = self._piecewise(rendered, whole)
        return Sample.of(ids, np.repeat([False, True] * len(rendered.spans), np.diff([0, *ends, len(ids)])))

    def _piecewise(self, rendered: Rendered, whole: Ids) -> tuple[Ids, list[int]]:
        """The ids of the pieces one by one, and where each but the last ends; they must say what ``whole`` says."""
        pieces = self._tokenize(rendered.pieces)
        ids = [*chain.from_iterable(pieces)]
        if self.tokenizer.decode(ids) != self.tokenizer.decode(whole):
            raise UserError("a token spans the border of an answer, and this tokenizer cannot tokenize its two parts")
        return ids, [*accumulate(map(len, pieces[:-1]))]

    def _tokenize(self, texts: list[str]) -> list[Ids]:
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[Ids] = encoded["input_ids"]
        return ids

    def _at_row(self, number: int) -> AbstractContextManager[None]:
        return _at(f"{self.where}:row {number + 1}")

    @cached_property
    def _renderer(self) -> ChatRenderer:
        return ChatRenderer(self.tokenizer)

    @cached_property
    def _stop_ids(self) -> set[int]:
        return {*self._stop, *self.tokenizer.added_tokens_decoder}

    @cached_property
    def _opening(self) -> Ids:
        """What the tokenizer by itself puts before a text: nothing, or its bos token."""
        for letter in ascii_letters + digits:
            bare = self._tokenize([letter])[0]
            if bare:
                whole: Ids = self.tokenizer(letter)["input_ids"]
                return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])
        return []


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Puts the place before a user's error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _mapping(row: object) -> Row:
    if not isinstance(row, Mapping):
        raise UserError(f"a row must be a mapping from column to value, got {type(row).__name__}")
    return row


def _check_unicode(*texts: str) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        broken = error.object[error.start]
        raise UserError(f"the text holds half of a surrogate pair ({broken!r}), which is not Unicode text") from None


def _numbers(rows: Rows) -> Iterable[int]:
    return rows.indices.tolist() if isinstance(rows, RowSubset) else range(len(rows))


def _check(report: TokenizationReport, where: str, max_length: int | None, max_dropped_share: float) -> None:
    """Refuse a data set that lost too much; warn of one that teaches no stop."""
    lost = report.dropped.total()
    reasons = ", ".join(f"{count} x {reason}" for reason, count in report.dropped.items())
    longer = f"raise --max_length={max_length}, " if report.dropped[_CUT_AWAY] else ""
    if not report.rows_kept:
        raise UserError(
            f"{where}: none of the {report.rows} rows is left to train on ({reasons}); {longer}check the data"
        )
    if lost > max_dropped_share * report.rows:
        raise UserError(
            f"{where}: {lost} of {report.rows} rows have nothing to learn ({reasons}), more than "
            f"--max_dropped_share={max_dropped_share} allows; {longer}mend the data or allow a larger share"
        )
    if report.without_end_of_turn:
        warnings.warn(
            f"{where}: in {report.without_end_of_turn} of {report.rows} rows the chat template ends the last answer "
            "with no end-of-turn token that the tokenizer knows: the model will not learn to stop",
            stacklevel=3,
        )
