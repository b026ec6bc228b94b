"""Tokenized preference pairs, flat, as batching takes them: a pair is one sequence of an optimizer step.

Legend: P pairs.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from relax.data.tokens.tokenized import Float32, Int16, Int32, Int64, TokenizationReport, TokenizedDataset


class Pair(NamedTuple):
    """Both answers, each behind the prompt."""

    chosen: Int32
    """[T], token ids."""
    rejected: Int32
    margin: float = 0.0
    """By how much the one should score above the other."""


@dataclass(frozen=True, eq=False)
class PairDataset:
    """The pairs of a data set, in the order of its rows."""

    samples: TokenizedDataset
    """2 P: of each pair the chosen answer, then the rejected one."""
    margins: Float32  # [P]
    padded: bool = False
    """Whether micro-batches will be padded, which decides what a pair takes of one."""

    def __len__(self) -> int:
        return len(self.margins)

    def __getitem__(self, index: int) -> Pair:
        """Pair ``index``, as views into the flat arrays."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of a data set of {len(self)}")
        chosen, rejected = (self.samples[at].input_ids for at in (2 * index, 2 * index + 1))
        return Pair(chosen, rejected, float(self.margins[index]))

    @cached_property
    def lengths(self) -> Int64:
        """[P], what a pair takes: the tokens of both; where rows are padded, twice those of the longer one."""
        both = self.samples.lengths.reshape(-1, 2)
        return 2 * both.max(axis=1) if self.padded else both.sum(axis=1)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return int(self.samples.lengths.max())

    @property
    def endings(self) -> Int32:
        """The tokens that answers end with, each once."""
        return np.unique(self.samples.tokens[self.samples.offsets[1:] - 1])

    @property
    def source_rows(self) -> Int64:
        """[P], where each pair stood among the rows it came from, counted from 0."""
        return self.samples.source_rows[::2]

    @cached_property
    def num_targets(self) -> Int64:
        """[P]: a pair is one thing to learn."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def row_weights(self) -> None:
        """All count alike."""
        return

    @property
    def report(self) -> TokenizationReport:
        """What became of the rows."""
        return self.samples.report

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of ids, margins and order."""
        digest = hashlib.blake2b(self.samples.fingerprint.encode(), digest_size=16)
        digest.update(self.margins.astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def parts(self) -> Int16 | None:
        """[P], which part of a mixture each pair is of."""
        return None if self.samples.parts is None else self.samples.parts[::2]

    @property
    def part_names(self) -> tuple[str, ...]:
        """One a part."""
        return self.samples.part_names

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each part in an epoch; empty: every pair once."""
        return self.samples.shares

    def describe(self) -> str:
        """One line for the start of a run: how many pairs, how long (p50, p95, longest), what was cut and dropped."""
        middle, most = np.percentile(self.samples.lengths, (50, 95), method="inverted_cdf")
        line = (
            f"{len(self):,} pairs of {self.report.tokens:,} tokens "
            f"(an answer with its prompt: p50 {middle:,}, p95 {most:,}, longest {self.longest_answer:,})"
        )
        if self.report.truncated:
            line += f"; {self.report.truncated:,} pairs cut to --max_length"
        dropped = ", ".join(f"{count:,} rows dropped ({reason})" for reason, count in self.report.dropped.items())
        return f"{line}; {dropped}" if dropped else line
