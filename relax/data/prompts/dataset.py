"""Tokenized prompts, flat: one array of ids for the whole data set; rows are read when asked for. No tokenizer here.

Legend: P prompts kept, N tokens of all.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from relax.data.examples import Message, Row
from relax.data.prompts.reading import Readers
from relax.data.prompts.walk import PromptWalk
from relax.data.rows import Mixed, Rows, whole
from relax.data.tokens.tokenized import Int16, Int32, Int64


class EncodedPrompt(NamedTuple):
    """What a policy is asked, and what its answers are scored by."""

    ids: list[int]
    prompt: str | list[Message]
    """What the row asks, for graders: ``as_chat`` and ``system_prompt`` change the ids only."""
    row: Row
    """All columns of the row, renamed."""


@dataclass(frozen=True)
class PromptReport:
    """What became of the rows."""

    rows: int
    too_long: int = 0
    """Dropped: longer than ``max_length``."""
    max_length: int | None = None
    """In tokens."""

    @property
    def kept(self) -> int:
        """Prompts that are asked."""
        return self.rows - self.too_long


@dataclass(frozen=True, eq=False)
class PromptDataset:
    """The prompts of a data set, in the order of its rows. Costs 4 bytes a token, beside the rows themselves."""

    rows: Rows
    readers: Readers
    tokens: Int32  # [N]
    offsets: Int64  # [P + 1]; prompt i is tokens[offsets[i]:offsets[i + 1]]
    source_rows: Int64  # [P]; where each prompt stands in ``rows``
    report: PromptReport

    def __len__(self) -> int:
        return len(self.source_rows)

    def __getitem__(self, index: int) -> EncodedPrompt:
        """Prompt ``index``; its row is read now.

        Raises:
            UserError: the row cannot be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"prompt {index} of a data set of {len(self)}")
        reader = self.readers[0 if self.parts is None else int(self.parts[index])]
        row = reader.named(self.rows[int(self.source_rows[index])])
        return EncodedPrompt(self.ids(index), reader.read(row).prompt, row)

    def ids(self, index: int) -> list[int]:
        """The tokens of prompt ``index``, without a look at its row."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].tolist()

    @cached_property
    def lengths(self) -> Int64:
        """[P] tokens of each prompt."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of ids, order and shares: equal for equal prompts, whatever they came from."""
        digest = hashlib.blake2b(self.lengths.astype("<i8").tobytes(), digest_size=16)
        digest.update(self.tokens.astype("<i4").tobytes())
        if self.shares:
            assert self.parts is not None, "a mixture knows the part of each prompt"
            digest.update(repr(self.shares).encode() + self.parts.astype("<i2").tobytes())
        return digest.hexdigest()

    @cached_property
    def parts(self) -> Int16 | None:
        """[P], which part of a mixture each prompt is of; None where there is no mixture."""
        behind, numbers = whole(self.rows)
        return behind.parts_of(numbers[self.source_rows]) if isinstance(behind, Mixed) else None

    @property
    def part_names(self) -> tuple[str, ...]:
        """One a part of a mixture."""
        behind, _ = whole(self.rows)
        return behind.part_names if isinstance(behind, Mixed) else ()

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each part of a mixture in a pass; empty: every prompt once."""
        behind, _ = whole(self.rows)
        return behind.shares if isinstance(behind, Mixed) else ()

    def walk(self, seed: int) -> PromptWalk:
        """The endless walk through these prompts, the parts of a mixture by their shares."""
        return PromptWalk(len(self), seed, self.shares, self.parts, self.part_names)

    def describe(self) -> str:
        """One line for the start of a run: how many prompts, how long (p50, p95, longest), how many dropped."""
        middle, most = np.percentile(self.lengths, (50, 95), method="inverted_cdf")
        line = (
            f"{len(self):,} prompts of {len(self.tokens):,} tokens "
            f"(p50 {middle:,}, p95 {most:,}, longest {self.lengths.max():,})"
        )
        if not self.report.too_long:
            return line
        limit = self.report.max_length
        return f"{line}; {self.report.too_long:,} rows dropped (longer than --max_prompt_length={limit})"
