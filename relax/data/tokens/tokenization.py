"""A whole data set -> tokens, in several processes and from the cache. Knows no format and no chat template."""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from relax.data.examples import Row
from relax.data.rows import Mixed, Rows, place, whole
from relax.data.tokens.cache_key import cache_key
from relax.data.tokens.encoding import EncodingOptions, RowEncoder
from relax.data.tokens.row_checks import RowChecks
from relax.data.tokens.row_progress import count_rows
from relax.data.tokens.token_cache import CacheFailed, load_or_make
from relax.data.tokens.tokenized import Int16, Int64, Sample, TokenBlock, TokenizationReport, TokenizedDataset
from relax.data.tokens.worker_processes import default_workers, in_order
from relax.errors import UserError
from relax.ranks import is_main_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK_ROWS = 1000
ENOUGH_ROWS_FOR_PROCESSES = 20_000


def tokenize_rows(
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    options: EncodingOptions | None = None,
    *,
    where: str = "data",
    max_dropped_share: float = 0.05,
    workers: int | None = None,
    cache: Path | None = None,
) -> TokenizedDataset:
    """Tokenize a data set and say of every token whether it is learnt.

    The content and the order do not depend on ``workers`` or ``cache``. The data set's ``report`` counts what happened.

    Args:
        rows: of one format, by the options' name or else by the columns of the first row. The parts of a mixture may
            differ in format.
        tokenizer: with the chat template that conversations are rendered with.
        options: see there.
        where: what to call the rows in messages, if they do not know where they come from.
        max_dropped_share: rows without a trained token are dropped; more of them than this share are an error. Rows
            that the options ask to leave out (weight 0, ``truncation="drop"``) are counted, but not for this.
        workers: processes that tokenize, 0: this one alone; None: one a core for 20,000 rows or more (on Linux).
        cache: the folder where tokens are kept for the next run; None keeps them in memory only. Used for rows that
            have a fingerprint, which those from files and from ``datasets`` have.

    Raises:
        UserError: a bad row (the message begins with its place); no row left; too many rows dropped; a tokenizer
            without the eos token or chat template needed.
    """
    options = options or EncodingOptions()
    checks = RowChecks(where, options, max_dropped_share)
    run = RowPass.over(rows, partial(_encoder, tokenizer, options), checks, workers)
    formats = {encoder.format.name for encoder in run.encoders.values()}
    checks.warn_of_options(formats)
    checks.warn_of_the_date(formats, tokenizer.chat_template)
    key = None if cache is None else cache_key(rows, tokenizer, options)
    dataset = run.tokenize(None if cache is None or key is None else cache.expanduser() / key)
    checks.warn(dataset.report, formats)
    return dataset


def _encoder(tokenizer: "PreTrainedTokenizerBase", options: EncodingOptions, first_row: Row, where: str) -> RowEncoder:
    return RowEncoder(first_row, tokenizer, options, where)


class EncodedRow(Protocol):
    """What became of a row."""

    @property
    def samples(self) -> Sequence[Sample]:
        """None of them: the row is dropped."""

    def count_in(self, report: TokenizationReport) -> None:
        """Add the row to ``report``."""


class Encoder(Protocol):
    """Encodes rows of one format."""

    unread_columns: list[str]

    def encode(self, rows: Iterable[tuple[str, Row]]) -> Iterator[EncodedRow]:
        """What becomes of each (place, row), in order."""


class Checks(Protocol):
    """Judges a data set by what became of its rows."""

    @property
    def where(self) -> str:
        """What the rows are called."""

    def refuse(self, report: TokenizationReport) -> None:
        """Refuse one that lost too much.

        Raises:
            UserError: it did.
        """


E = TypeVar("E", bound=Encoder)


@dataclass(frozen=True)
class RowPass(Generic[E]):
    """One pass over the rows; each process gets it whole."""

    rows: Rows
    numbers: Int64
    """[rows], where each one stood in the source."""
    parts: Int16
    """[rows], of which part of a mixture each one is; 0 if it is none."""
    encoders: Mapping[int, E]
    """By part."""
    checks: Checks
    workers: int

    @classmethod
    def over(cls, rows: Rows, encoder: Callable[[Row, str], E], checks: Checks, workers: int | None) -> "RowPass[E]":
        """All of the rows; the first one of each part, with its place, makes the part's encoder.

        Raises:
            UserError: there is no row, or a number of ``workers`` below 0 (None: one a core for many rows).
        """
        if not len(rows):
            raise UserError(f"{checks.where}: no rows")
        if workers is None:
            workers = default_workers(len(rows), ENOUGH_ROWS_FOR_PROCESSES)
        elif workers < 0:
            raise UserError(f"--tokenize_workers must be 0 (only this process) or more, got {workers}")
        behind, numbers = whole(rows)
        parts = behind.parts_of(numbers) if isinstance(behind, Mixed) else np.zeros(len(rows), dtype=np.int16)
        encoders = {
            int(part): encoder(rows[int(first)], place(rows, int(first), checks.where))
            for part, first in zip(*np.unique(parts, return_index=True), strict=True)
        }
        return cls(rows, numbers, parts, encoders, checks, workers)

    def tokenize(self, entry: Path | None) -> TokenizedDataset:
        """The data set; through the cache, where it has an ``entry`` there.

        Raises:
            UserError: a bad row; too many dropped ones.
        """
        dataset = self.in_memory() if entry is None else self.through_cache(entry)
        dataset.report.unread_columns = self.unread_columns
        self.checks.refuse(dataset.report)  # once more: kept tokens may have been made under another limit
        behind, _ = whole(self.rows)
        return dataset.mixed(behind) if isinstance(behind, Mixed) else dataset

    @property
    def unread_columns(self) -> tuple[str, ...]:
        """Of all parts."""
        return tuple(sorted({column for encoder in self.encoders.values() for column in encoder.unread_columns}))

    def in_memory(self) -> TokenizedDataset:
        """Tokenized by every rank for itself; the first one tells how far it is."""
        return TokenizedDataset.of_blocks(self.blocks(tell=is_main_process()))

    def through_cache(self, entry: Path) -> TokenizedDataset:
        """Tokenized by one rank, which tells how far it is, and read by all."""
        try:
            return load_or_make(entry, lambda: self.blocks(tell=True))
        except CacheFailed as error:
            warnings.warn(
                f"{self.checks.where}: the tokens cannot be kept in {entry.parent} for the next run ({error}); "
                "make room there or choose another folder with --data_cache",
                stacklevel=3,
            )
            return self.in_memory()

    def blocks(self, tell: bool) -> Generator[TokenBlock]:
        """All rows, a thousand at a time.

        Raises:
            UserError: a bad row; at the end, too many dropped ones.
        """
        report = TokenizationReport()
        blocks = in_order(self.encode, -(-len(self.rows) // BLOCK_ROWS), self.workers)
        with closing(blocks):
            for block in self._told(blocks) if tell else blocks:
                report.add(block.report)
                yield block
        self.checks.refuse(report)

    def encode(self, block: int) -> TokenBlock:
        """The rows of one block."""
        report = TokenizationReport()
        samples: list[Sample] = []
        numbers: list[int] = []
        at = range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self.rows)))
        for index, encoded in zip(at, self._encode(at), strict=True):
            encoded.count_in(report)
            samples.extend(encoded.samples)
            numbers.extend([int(self.numbers[index])] * len(encoded.samples))
        return TokenBlock.of(samples, numbers, report)

    def _encode(self, at: range) -> Iterator[EncodedRow]:
        """The rows of a block, each by its part's encoder; parts lie one behind the other."""
        for part, indices in groupby(at, key=self.parts.__getitem__):
            placed = ((place(self.rows, index, self.checks.where), self.rows[index]) for index in indices)
            yield from self.encoders[int(part)].encode(placed)

    def _told(self, blocks: Iterable[TokenBlock]) -> Iterator[TokenBlock]:
        counted = ((block.report.rows, block) for block in blocks)
        return count_rows(counted, len(self.rows), f"Tokenizing {self.checks.where}")
