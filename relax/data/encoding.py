"""Rows -> samples, a thousand rows to a call of the tokenizer. Reads no files, builds no batches.

A row is read by its format, turned into text (a conversation: by the chat template), tokenized, and cut to length.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from relax.data.cells import as_row
from relax.data.chat import ChatRenderer, TrainOn
from relax.data.drafts import Conversation, Draft, PlainText, ReadyTokens
from relax.data.examples import Chat, Example, Preference, Prompt, Row, Text, Tokens
from relax.data.formats import Format, choose, read_weight, rename
from relax.data.token_ids import Ids, TokenIds
from relax.data.tokenized import Sample, TokenizationReport
from relax.data.truncation import Truncation, truncate
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_PER_CALL = 1000
_CHARACTERS_PER_CALL = 2_000_000
_NOT_FOR_LEARNING = {
    Prompt: "the row is only a prompt, with nothing to learn; rows to learn from need a 'completion' or 'messages'",
    Preference: (
        "the row is a preference pair, which is not learnt from directly; to learn the chosen answer, give "
        "--columns='{completion: chosen}'"
    ),
}


@dataclass(frozen=True)
class EncodingOptions:
    """How rows become samples.

    Args:
        max_length: tokens of a sample, at least 2; None leaves rows whole.
        truncation: of a longer row: "end" or "start" cuts that off, "drop" leaves the row out, "error" stops.
        train_on: "completion" learns completions and assistant turns (of a ``text`` row, everything; of a tokenized
            row, what its labels or loss mask say), "last" only the last assistant turn, "all" every token.
        format: the rows' format by name; None: recognised by the columns of the first row.
        columns: our column name -> the rows' name for it, for rows that call theirs otherwise.
        weight_column: the column with each row's weight in the loss; rows of weight 0 are dropped.

    Raises:
        UserError: a value that is none of these.
    """

    max_length: int | None = None
    truncation: Truncation = "end"
    train_on: TrainOn = "completion"
    format: str | None = None
    columns: Mapping[str, str] | None = None
    weight_column: str | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise UserError(
                f"--max_length must be at least 2, a token to read and one to predict, got {self.max_length}"
            )
        if self.train_on not in get_args(TrainOn):
            raise UserError(f"--train_on must be one of {', '.join(get_args(TrainOn))}, got {self.train_on!r}")
        if self.truncation not in get_args(Truncation):
            raise UserError(f"--truncation must be one of {', '.join(get_args(Truncation))}, got {self.truncation!r}")


Reason = Literal[
    "", "empty text", "no training target", "no training target within max_length", "longer than max_length", "weight 0"
]


class Encoded(NamedTuple):
    """What became of a row."""

    sample: Sample | None
    """None: the row is dropped."""
    reason: Reason = ""
    """Why it is dropped."""
    truncated_tokens: int = 0
    without_end_of_turn: bool = False
    double_bos: bool = False
    unknown_tokens: int = 0

    def count_in(self, report: TokenizationReport) -> None:
        """Add the row to ``report``."""
        report.rows += 1
        if self.sample is None:
            report.dropped[self.reason] += 1
        report.truncated += self.truncated_tokens > 0
        report.truncated_tokens += self.truncated_tokens
        report.without_end_of_turn += self.without_end_of_turn
        report.double_bos += self.double_bos
        report.unknown_tokens += self.unknown_tokens


class _Prepared(NamedTuple):
    """A row that is read, not yet tokenized."""

    place: str
    weight: float
    draft: Draft | None
    """None: the weight is 0."""

    @property
    def texts(self) -> list[str]:
        """What the tokenizer is asked for."""
        return [] if self.draft is None else self.draft.texts


class RowEncoder:
    """Encodes rows of one format: the one named in the options, else the one that ``first_row`` has.

    Raises:
        UserError: no format fits; the message begins with ``where``.
    """

    def __init__(
        self,
        first_row: Row,
        tokenizer: "PreTrainedTokenizerBase",
        options: EncodingOptions | None = None,
        where: str = "data",
    ):
        self.tokenizer = tokenizer
        self.options = options or EncodingOptions()
        self.ids = TokenIds(tokenizer)
        with _at(where):
            self.format: Format = choose(self.options.format, self._named(first_row).keys())

    def encode(self, rows: Iterable[tuple[str, Row]]) -> Iterator[Encoded]:
        """What becomes of each (place, row), in order; up to a thousand rows are read ahead.

        Raises:
            UserError: a bad row; the message begins with its place.
        """
        for batch in _batches(self._prepare(place, row) for place, row in rows):
            ids = iter(self.ids.tokenize([*chain.from_iterable(row.texts for row in batch)]))
            for row in batch:
                with _at(row.place):
                    encoded = self._finish(row, [*islice(ids, len(row.texts))])
                yield encoded

    def _prepare(self, place: str, row: Row) -> _Prepared:
        with _at(place):
            weight = 1.0 if self.options.weight_column is None else read_weight(row, self.options.weight_column)
            example = self.format.read(self._named(row))
        self._require(example)  # outside of the row: what the tokenizer lacks is not the row's fault
        with _at(place):
            draft = self._draft(example)
            _check_unicode(draft.texts)
        return _Prepared(place, weight, draft if weight else None)

    def _require(self, example: Example) -> None:
        if isinstance(example, Text):
            self.ids.require_eos()
        elif isinstance(example, Chat):
            self._renderer  # noqa: B018, it is made here, and refuses a tokenizer without a chat template

    def _draft(self, example: Example) -> Draft:
        learn_all = self.options.train_on == "all"
        match example:
            case Text():
                return PlainText(self.ids, example, learn_all)
            case Chat():
                return Conversation(self.ids, self._renderer.learn(example, self.options.train_on))
            case Tokens():
                return ReadyTokens(self.ids, example, learn_all)
            case _:
                raise UserError(_NOT_FOR_LEARNING[type(example)])

    def _finish(self, row: _Prepared, ids: list[Ids]) -> Encoded:
        """Put the ids together, cut them to length, and look at what is left."""
        if row.draft is None:
            return Encoded(None, "weight 0")
        whole = row.draft.sample(ids)
        if not whole.loss_mask.any():
            return Encoded(None, "empty text" if isinstance(row.draft, PlainText) else "no training target")
        options = self.options
        sample = truncate(whole, options.max_length, options.truncation, self.tokenizer.bos_token_id)
        if sample is None:
            return Encoded(None, "longer than max_length")
        if not sample.loss_mask.any():
            return Encoded(None, "no training target within max_length")
        cut = len(whole.input_ids) - len(sample.input_ids)
        bos = self.tokenizer.bos_token_id
        return Encoded(
            sample._replace(weight=row.weight),
            truncated_tokens=cut,
            without_end_of_turn=not self._ends(sample) and not (cut and options.truncation == "end"),
            double_bos=bos is not None and sample.input_ids[:2].tolist() == [bos, bos],
            unknown_tokens=int(np.count_nonzero(sample.input_ids == self._unknown)),
        )

    def _ends(self, sample: Sample) -> bool:
        """Whether the row teaches to stop."""
        return bool(sample.loss_mask[-1]) and int(sample.input_ids[-1]) in self._stop_ids

    def _named(self, row: object) -> Row:
        """The row, its columns called as we call them."""
        return as_row(row) if self.options.columns is None else rename(row, self.options.columns)

    @cached_property
    def _renderer(self) -> ChatRenderer:
        return ChatRenderer(self.tokenizer)

    @cached_property
    def _stop_ids(self) -> set[int]:
        return {*self.ids.stop, *self.ids.added_ids}

    @cached_property
    def _unknown(self) -> int:
        """The id of the unknown token, where it means nothing else (GPT-2 uses one for unknown, bos and eos); or -1."""
        known = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, None}
        return -1 if self.tokenizer.unk_token_id in known else int(self.tokenizer.unk_token_id)


def tokenize_row(row: Row, tokenizer: "PreTrainedTokenizerBase", options: EncodingOptions | None = None) -> Sample:
    """One row, as :func:`tokenize_rows` does it.

    Raises:
        UserError: a bad row, or one that would be dropped.
    """
    [encoded] = RowEncoder(row, tokenizer, options).encode([("data:row 1", row)])
    if encoded.sample is None:
        raise UserError(f"data:row 1: {encoded.reason}: there is nothing to learn")
    return encoded.sample


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Puts the place before a user's error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _batches(rows: Iterable[_Prepared]) -> Iterator[list[_Prepared]]:
    """Rows for one call of the tokenizer: many, but not so many that their ids, as Python lists, fill the memory."""
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row.texts))
        if len(batch) == _ROWS_PER_CALL or characters > _CHARACTERS_PER_CALL:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_unicode(texts: list[str]) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        broken = error.object[error.start]
        raise UserError(f"the text holds half of a surrogate pair ({broken!r}), which is not Unicode text") from None
