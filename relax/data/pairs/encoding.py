"""Preference rows -> tokenized pairs. How a model is shown an answer is the reader's to say. Trains nothing."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from relax.data.examples import Preference, Row
from relax.data.formats.cells import as_row, check_unicode
from relax.data.formats.formats import FORMATS, choose, read_weight, rename
from relax.data.pairs.dataset import PairDataset
from relax.data.rows import Rows, at, place
from relax.data.tokens.cache_key import cache_key
from relax.data.tokens.tokenization import RowPass
from relax.data.tokens.tokenized import Float32, Int64, Sample, TokenizationReport
from relax.errors import UserError

if TYPE_CHECKING:
    from relax.rewards.reading import AnswerReader, Reading

_ROWS_PER_CALL = 256
_FORMAT = FORMATS["preference"]

Reason = Literal["", "both answers have the same tokens", "both answers are the same within max_length"]


@dataclass(frozen=True)
class PairOptions:
    """What the tokens of a pair depend on, beside the tokenizer.

    Args:
        max_length: tokens of prompt and answer together; a longer one loses its beginning.
        columns: our column name -> the rows' name for it, for rows that call theirs otherwise.
    """

    max_length: int
    columns: Mapping[str, str] | None = None


class EncodedPair(NamedTuple):
    """What became of a row."""

    samples: tuple[Sample, ...]
    """Of the chosen answer and of the rejected one; none: the row is dropped."""
    reason: Reason
    """Why it is dropped."""
    unread_tokens: int

    def count_in(self, report: TokenizationReport) -> None:
        """Add the row to ``report``."""
        report.rows += 1
        if self.reason:
            report.dropped[self.reason] += 1
        report.truncated += self.unread_tokens > 0
        report.truncated_tokens += self.unread_tokens


class PairEncoder:
    """Encodes preference rows.

    Raises:
        UserError: ``first_row`` is none; the message begins with ``where``.
    """

    def __init__(self, reader: "AnswerReader", options: PairOptions, first_row: Row, where: str) -> None:
        self.reader, self.options = reader, options
        with at(where):
            columns = self._named(first_row).keys()
            with at("a reward model learns from preference pairs"):
                choose(_FORMAT.name, columns)
        self.unread_columns = sorted(map(str, columns - {*_FORMAT.columns, *_FORMAT.optional}))

    def encode(self, rows: Iterable[tuple[str, Row]]) -> Iterator[EncodedPair]:
        """What becomes of each (place, row), in order.

        Raises:
            UserError: a bad row; the message begins with its place.
        """
        remaining = iter(rows)
        while block := [*islice(remaining, _ROWS_PER_CALL)]:
            written = [self._write(*each) for each in block]
            readings = iter(self.reader.tokenize([*chain.from_iterable(written)]))
            for (where, _), chosen, rejected in zip(block, readings, readings, strict=True):
                with at(where):
                    encoded = _encoded(chosen, rejected)
                yield encoded

    def _write(self, where: str, row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
        with at(where):
            pair = _FORMAT.read(self._named(row))
            assert isinstance(pair, Preference), "the format is read as that"
            texts = [self.reader.write(pair.prompt, answer, pair.tools) for answer in (pair.chosen, pair.rejected)]
            check_unicode(chain.from_iterable(texts))
        return texts[0], texts[1]

    def _named(self, row: object) -> Row:
        return as_row(row) if self.options.columns is None else rename(row, self.options.columns)


@dataclass(frozen=True)
class _PairChecks:
    """Judges the rows called ``where``."""

    where: str
    max_length: int
    max_dropped_share: float

    def refuse(self, report: TokenizationReport) -> None:
        """Refuse rows of which too few say what is better.

        Raises:
            UserError: none does, or more than the share allows do not.
        """
        dropped = report.dropped.total()
        if report.rows_kept and dropped <= self.max_dropped_share * report.rows:
            return
        reasons = ", ".join(f"{count} x {reason}" for reason, count in report.dropped.items() if count)
        raise UserError(
            f"{self.where}: {dropped} of {report.rows} pairs say nothing about what is better ({reasons}), more than "
            f"--max_dropped_share={self.max_dropped_share} allows; mend the data, raise --max_length="
            f"{self.max_length}, or allow a larger share"
        )


def tokenize_pairs(
    rows: Rows,
    reader: "AnswerReader",
    *,
    columns: Mapping[str, str] | None = None,
    margin: float = 0.0,
    margin_column: str | None = None,
    max_dropped_share: float = 0.05,
    where: str = "training data",
    workers: int | None = None,
    cache: Path | None = None,
) -> PairDataset:
    """Tokenize the pairs of a data set. Content and order do not depend on ``workers`` or ``cache``.

    Args:
        rows: with ``chosen`` and ``rejected``, and perhaps ``prompt`` and ``tools``.
        reader: puts an answer behind its prompt.
        columns: our column name -> the rows' name for it.
        margin: by how much every chosen answer should score above the rejected one.
        margin_column: the column that says so of each row, in place of ``margin``.
        max_dropped_share: pairs whose answers have the same tokens are dropped, with a warning; more of them than this
            share are an error.
        where: what to call the rows in messages, if they do not know where they come from.
        workers: processes that tokenize; None: one a core for many rows.
        cache: the folder where tokens are kept for the next run; None keeps them in memory only.

    Raises:
        UserError: a bad row (the message begins with its place); too many pairs dropped.
    """
    options = PairOptions(reader.max_length, columns)
    checks = _PairChecks(where, reader.max_length, max_dropped_share)
    run = RowPass.over(rows, partial(PairEncoder, reader, options), checks, workers)
    key = None if cache is None else cache_key(rows, reader.tokenizer, options)
    samples = run.tokenize(None if cache is None or key is None else cache.expanduser() / key)
    kept = np.searchsorted(run.numbers, samples.source_rows[::2])
    _warn_of_dropped(rows, kept, samples.report, where)
    if margin_column is None:
        return PairDataset(samples, np.full(len(kept), margin, dtype=np.float32))
    return PairDataset(samples, _margins(rows, kept, margin_column, where))


def _encoded(chosen: "Reading", rejected: "Reading") -> EncodedPair:
    for reading in (chosen, rejected):
        if not reading.num_tokens:
            raise UserError("the tokenizer has no token for anything in it")
    ids = [reading.inputs["input_ids"] for reading in (chosen, rejected)]
    unread = chosen.unread_tokens + rejected.unread_tokens
    if ids[0] == ids[1]:
        reason: Reason = (
            "both answers are the same within max_length" if unread else "both answers have the same tokens"
        )
        return EncodedPair((), reason, unread)
    return EncodedPair(tuple(Sample.of(each, [False] * len(each)) for each in ids), "", unread)


def _margins(rows: Rows, kept: Int64, column: str, where: str) -> Float32:
    margins = np.empty(len(kept), dtype=np.float32)
    for i, index in enumerate(kept.tolist()):
        with at(place(rows, index, where)):
            margins[i] = read_weight(rows[index], column, "--margin_column")
    return margins


def _warn_of_dropped(rows: Rows, kept: Int64, report: TokenizationReport, where: str) -> None:
    dropped = np.setdiff1d(np.arange(len(rows)), kept)
    if len(dropped):
        reasons = ", ".join(f"{count} x {reason}" for reason, count in report.dropped.items() if count)
        warnings.warn(
            f"{where}: {len(dropped)} of {len(rows)} pairs are left out ({reasons}), the first one is "
            f"{place(rows, int(dropped[0]), where)}",
            stacklevel=4,
        )
