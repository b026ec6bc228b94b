"""Tokenized rows, flat: one array of ids for the whole data set. Knows neither text nor batches.

Flat arrays cost 5 bytes a token, are pickled to data workers in one piece, and give the lengths and target counts that
batches are planned with, without touching a row. Legend: R rows kept, N tokens of all rows.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from relax.errors import UserError

Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Bool: TypeAlias = npt.NDArray[np.bool_]


class Sample(NamedTuple):
    """One tokenized row: ids and, per token, whether it is a training target (predicted from the tokens before it)."""

    input_ids: Int32  # [T]
    loss_mask: Bool  # [T]; the first token is never a target: nothing comes before it

    @classmethod
    def of(cls, input_ids: npt.ArrayLike, loss_mask: npt.ArrayLike) -> "Sample":
        """From any two arrays or lists of one length; the first token's target is taken away."""
        ids, mask = np.array(input_ids, dtype=np.int32), np.array(loss_mask, dtype=np.bool_)
        if ids.shape != mask.shape:
            raise UserError(f"a sample needs one loss mask entry a token, got {mask.size} for {ids.size} tokens")
        mask[:1] = False
        return cls(ids, mask)

    def head(self, length: int | None) -> "Sample":
        """The first ``length`` tokens (all for ``None``); views."""
        return Sample(self.input_ids[:length], self.loss_mask[:length])


@dataclass
class TokenizationReport:
    """What became of the rows: for the print at the start of a run."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    without_end_of_turn: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def rows_kept(self) -> int:
        """The rows that are trained on."""
        return self.rows - self.dropped.total()


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """The samples of a data set, one behind the other.

    ``source_rows`` holds where each sample stood among the rows it came from (counted from 0).
    """

    tokens: Int32  # [N]
    loss_mask: Bool  # [N]
    offsets: Int64  # [R + 1]; sample i is tokens[offsets[i]:offsets[i + 1]]
    source_rows: Int64  # [R]
    report: TokenizationReport

    @classmethod
    def from_samples(
        cls,
        samples: Iterable[Sample],
        source_rows: Iterable[int] | None = None,
        report: TokenizationReport | None = None,
    ) -> "TokenizedDataset":
        """From samples one at a time; a ``report`` given is completed with the token counts.

        Raises:
            UserError: there is no sample, or one without a token.
        """
        ids, masks = [], []
        for sample in samples:
            ids.append(sample.input_ids)
            masks.append(sample.loss_mask)
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        if not ids or lengths.min() == 0:
            raise UserError("a data set needs at least one row, and every row at least one token")
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        loss_mask = np.concatenate(masks)
        loss_mask[offsets[:-1]] = False
        report = report or TokenizationReport(rows=len(ids))
        report.tokens, report.trained_tokens = int(offsets[-1]), int(loss_mask.sum())
        rows = np.arange(len(ids)) if source_rows is None else np.array([*source_rows])
        return cls(np.concatenate(ids), loss_mask, offsets, rows.astype(np.int64), report)

    def __len__(self) -> int:
        return len(self.source_rows)

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, as views into the flat arrays."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        cut = slice(self.offsets[index], self.offsets[index + 1])
        return Sample(self.tokens[cut], self.loss_mask[cut])

    @cached_property
    def lengths(self) -> Int64:
        """[R] tokens of each sample."""
        return np.diff(self.offsets)

    @cached_property
    def num_targets(self) -> Int64:
        """[R] training targets of each sample."""
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.loss_mask, dtype=np.int64)])
        return np.diff(before[self.offsets])

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of ids, masks and their order: equal for equal content, whatever it came from."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.tokens, self.loss_mask, self.offsets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
