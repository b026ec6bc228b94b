"""Rows -> samples, a thousand rows to a call of the tokenizer. Reads no files, builds no batches.

A row is read by its format, turned into text (a conversation: by the chat template), tokenized, and cut to length.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, get_args

from relax.data.chat.learning import ChatRenderer, TrainOn
from relax.data.examples import Chat, Example, Preference, Prompt, Row, Text, Tokens
from relax.data.formats.cells import as_row, check_unicode
from relax.data.formats.formats import Format, choose, read_weight, rename
from relax.data.rows import at
from relax.data.tokens.drafts import Conversation, Draft, PlainText, ReadyTokens
from relax.data.tokens.encoded import Encoded, Finisher
from relax.data.tokens.token_ids import Ids, TokenIds
from relax.data.tokens.tokenized import Sample
from relax.data.tokens.truncation import Truncation
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_PER_CALL = 1000
_CHARACTERS_PER_CALL = 2_000_000
_NOT_FOR_LEARNING = {
    Prompt: "the row is only a prompt, with nothing to learn; rows to learn from need a 'completion' or 'messages'",
    Preference: (
        "the row is a preference pair, which is not learnt from as such; to learn the chosen answer, give "
        "--columns='{completion: chosen}', or '{messages: chosen}' where that holds the prompt as well"
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
        self._finisher = Finisher(self.ids, self.options.max_length, self.options.truncation)
        with at(where):
            columns = self._named(first_row).keys()
            self.format: Format = choose(self.options.format, columns)
        read = {*self.format.columns, *self.format.optional, self.options.weight_column}
        self.unread_columns = sorted(map(str, columns - read))

    def encode(self, rows: Iterable[tuple[str, Row]]) -> Iterator[Encoded]:
        """What becomes of each (place, row), in order; up to a thousand rows are read ahead.

        Raises:
            UserError: a bad row; the message begins with its place.
        """
        for batch in _batches(self._prepare(place, row) for place, row in rows):
            ids = iter(self.ids.tokenize([*chain.from_iterable(row.texts for row in batch)]))
            for row in batch:
                with at(row.place):
                    encoded = self._finish(row, [*islice(ids, len(row.texts))])
                yield encoded

    def _prepare(self, place: str, row: Row) -> _Prepared:
        with at(place):
            weight = 1.0 if self.options.weight_column is None else read_weight(row, self.options.weight_column)
            example = self.format.read(self._named(row))
        self._require(example)
        with at(place):
            draft = self._draft(example)
            check_unicode(draft.texts)
        return _Prepared(place, weight, draft if weight else None)

    def _require(self, example: Example) -> None:
        """Refuse a tokenizer that lacks what such rows need: that is no row's fault, so no row is named."""
        if isinstance(example, Text):
            self.ids.require_eos()
        elif isinstance(example, Chat):
            _ = self._renderer

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
        if row.draft is None:
            return Encoded(None, "weight 0")
        whole = row.draft.sample(ids)._replace(weight=row.weight)
        return self._finisher.finish(whole, "empty text" if isinstance(row.draft, PlainText) else "no training target")

    def _named(self, row: object) -> Row:
        """The row, its columns called as we call them."""
        return as_row(row) if self.options.columns is None else rename(row, self.options.columns)

    @cached_property
    def _renderer(self) -> ChatRenderer:
        return ChatRenderer(self.tokenizer)


def tokenize_row(row: Row, tokenizer: "PreTrainedTokenizerBase", options: EncodingOptions | None = None) -> Sample:
    """One row, as :func:`tokenize_rows` does it.

    Raises:
        UserError: a bad row, or one that would be dropped.
    """
    [encoded] = RowEncoder(row, tokenizer, options).encode([("data:row 1", row)])
    if encoded.sample is None:
        raise UserError(f"data:row 1: {encoded.reason}: there is nothing to learn")
    return encoded.sample


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
