"""A whole data set -> tokens, in several processes and from the cache. Knows no format and no chat template."""

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relax.data.rows import Mixed, Rows, place, whole
from relax.data.tokens.cache_key import cache_key
from relax.data.tokens.encoded import Encoded
from relax.data.tokens.encoding import EncodingOptions, RowEncoder
from relax.data.tokens.row_checks import RowChecks
from relax.data.tokens.row_progress import count_rows
from relax.data.tokens.token_cache import CacheFailed, load_or_make
from relax.data.tokens.tokenized import Int16, Int64, TokenBlock, TokenizationReport, TokenizedDataset
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
    if not len(rows):
        raise UserError(f"{where}: no rows")
    if workers is None:
        workers = default_workers(len(rows), ENOUGH_ROWS_FOR_PROCESSES)
    elif workers < 0:
        raise UserError(f"--tokenize_workers must be 0 (only this process) or more, got {workers}")
    checks = RowChecks(where, options, max_dropped_share)
    run = _Run.over(rows, tokenizer, checks, workers)
    formats = {encoder.format.name for encoder in run.encoders.values()}
    checks.warn_of_options(formats)
    checks.warn_of_the_date(formats, tokenizer.chat_template)
    key = None if cache is None else cache_key(rows, tokenizer, options)
    dataset = run.in_memory() if cache is None or key is None else run.through_cache(cache.expanduser() / key)
    dataset.report.unread_columns = run.unread_columns
    checks.refuse(dataset.report)  # once more: kept tokens may have been made under another limit
    checks.warn(dataset.report, formats)
    behind, _ = whole(rows)
    return dataset.mixed(behind) if isinstance(behind, Mixed) else dataset


@dataclass(frozen=True)
class _Run:
    """One pass over the rows; each process gets it whole."""

    rows: Rows
    numbers: Int64
    """[rows], where each one stood in the source."""
    parts: Int16
    """[rows], of which part of a mixture each one is; 0 if it is none."""
    encoders: Mapping[int, RowEncoder]
    """By part."""
    checks: RowChecks
    workers: int

    @classmethod
    def over(cls, rows: Rows, tokenizer: "PreTrainedTokenizerBase", checks: RowChecks, workers: int) -> "_Run":
        """All of the rows; the first one of each part says what format the part has."""
        behind, numbers = whole(rows)
        parts = behind.parts_of(numbers) if isinstance(behind, Mixed) else np.zeros(len(rows), dtype=np.int16)
        encoders = {
            int(part): RowEncoder(rows[int(first)], tokenizer, checks.options, place(rows, int(first), checks.where))
            for part, first in zip(*np.unique(parts, return_index=True), strict=True)
        }
        return cls(rows, numbers, parts, encoders, checks, workers)

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
        samples, numbers = [], []
        at = range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self.rows)))
        for index, encoded in zip(at, self._encode(at), strict=True):
            encoded.count_in(report)
            if encoded.sample is not None:
                samples.append(encoded.sample)
                numbers.append(int(self.numbers[index]))
        return TokenBlock.of(samples, numbers, report)

    def _encode(self, at: range) -> Iterator[Encoded]:
        """The rows of a block, each by its part's encoder; parts lie one behind the other."""
        for part, indices in groupby(at, key=self.parts.__getitem__):
            placed = ((place(self.rows, index, self.checks.where), self.rows[index]) for index in indices)
            yield from self.encoders[int(part)].encode(placed)

    def _told(self, blocks: Iterable[TokenBlock]) -> Iterator[TokenBlock]:
        counted = ((block.report.rows, block) for block in blocks)
        return count_rows(counted, len(self.rows), f"Tokenizing {self.checks.where}")
