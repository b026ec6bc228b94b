"""Tokenized rows, flat: one array of ids for the whole data set. Knows neither text nor batches.

Flat arrays cost 5 bytes a token, are pickled to data workers in one piece (or stay in a file, mapped), and give the
lengths and target counts that batches are planned with, without touching a row. Legend: R rows kept, N tokens of all.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from relax.data.rows import Mixed
from relax.errors import UserError

Int16: TypeAlias = npt.NDArray[np.int16]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Float32: TypeAlias = npt.NDArray[np.float32]
Bool: TypeAlias = npt.NDArray[np.bool_]


class Sample(NamedTuple):
    """One tokenized row: ids and, per token, whether it is a training target (predicted from the tokens before it)."""

    input_ids: Int32  # [T]
    loss_mask: Bool  # [T]; the first token is never a target: nothing comes before it
    weight: float = 1.0
    """How much the row's loss counts; > 0."""

    @classmethod
    def of(cls, input_ids: npt.ArrayLike, loss_mask: npt.ArrayLike, weight: float = 1.0) -> "Sample":
        """From any two arrays or lists of one length; the first token's target is taken away."""
        ids, mask = np.array(input_ids, dtype=np.int32), np.array(loss_mask, dtype=np.bool_)
        if ids.shape != mask.shape:
            raise UserError(f"a sample needs one loss mask entry a token, got {mask.size} for {ids.size} tokens")
        mask[:1] = False
        return cls(ids, mask, weight)


@dataclass
class TokenizationReport:
    """What became of the rows: for the audit at the start of a run."""

    rows: int = 0
    """All of them, the dropped ones too."""
    tokens: int = 0
    """Of the rows kept, as all that follow."""
    trained_tokens: int = 0
    truncated: int = 0
    """Rows that were cut to max_length."""
    truncated_tokens: int = 0
    """Tokens that were cut away from them."""
    without_end_of_turn: int = 0
    """Rows whose end was not cut and that still do not end with a trained end-of-turn or eos token."""
    duplicates: int = 0
    """Rows that are equal, token by token, to an earlier one."""
    double_bos: int = 0
    """Rows that begin with two bos tokens."""
    unknown_tokens: int = 0
    """Tokens that say only that the tokenizer does not know the text."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that are not trained on, by reason."""
    unread_columns: tuple[str, ...] = ()
    """Columns of the rows (of the first of each part) that their format knows nothing of."""

    @property
    def rows_kept(self) -> int:
        """The rows that are trained on."""
        return self.rows - self.dropped.total()

    def add(self, other: "TokenizationReport") -> None:
        """Count another part's rows in."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, for a file."""
        return {**vars(self), "dropped": dict(self.dropped)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TokenizationReport":
        """What ``as_json`` gave."""
        return cls(**{**values, "dropped": Counter(values["dropped"]), "unread_columns": ()})


class RowFacts(NamedTuple):
    """What is known of each row beside its tokens."""

    lengths: Int64  # [R]
    num_targets: Int64  # [R]
    source_rows: Int64  # [R]
    weights: Float32  # [R]
    digests: npt.NDArray[np.void]  # [R], 16 bytes of each row's ids, mask and weight

    @classmethod
    def joined(cls, parts: "Iterable[RowFacts]") -> "RowFacts":
        """Those of several blocks of rows, one behind the other."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


class TokenBlock(NamedTuple):
    """Some rows in a row: what tokenization hands on."""

    tokens: Int32  # [N]
    loss_mask: Bool  # [N]
    facts: RowFacts
    report: TokenizationReport

    @classmethod
    def of(cls, samples: list[Sample], source_rows: Iterable[int], report: TokenizationReport) -> "TokenBlock":
        """From samples (none is fine); ``report`` says what became of the rows they came from."""
        none = Sample.of([], [])
        facts = RowFacts(
            np.array([len(sample.input_ids) for sample in samples], dtype=np.int64),
            np.array([np.count_nonzero(sample.loss_mask) for sample in samples], dtype=np.int64),
            np.array([*source_rows], dtype=np.int64),
            np.array([sample.weight for sample in samples], dtype=np.float32),
            np.array([_digest(sample) for sample in samples], dtype="V16"),
        )
        ids, masks, _ = zip(none, *samples, strict=True)
        return cls(np.concatenate(ids), np.concatenate(masks), facts, report)


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """The samples of a data set, one behind the other; ``tokens`` and ``loss_mask`` may lie in a file, mapped."""

    tokens: Int32  # [N]
    loss_mask: Bool  # [N]
    offsets: Int64  # [R + 1]; sample i is tokens[offsets[i]:offsets[i + 1]]
    source_rows: Int64  # [R]; where each sample stood among the rows it came from, counted from 0
    num_targets: Int64  # [R]; training targets of each sample
    report: TokenizationReport
    fingerprint: str
    """A hex digest of ids, masks, weights, parts and their order: equal for equal content, whatever it came from."""
    row_weights: Float32 | None = None  # [R]; None: all 1
    parts: Int16 | None = None  # [R]; which part of a mixture each sample is of
    part_names: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    """Of each part in an epoch; empty: every row once."""

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
        rows = [Sample.of(*sample) for sample in samples]
        report = report or TokenizationReport(rows=len(rows))
        return cls.of_blocks([TokenBlock.of(rows, range(len(rows)) if source_rows is None else source_rows, report)])

    @classmethod
    def of_blocks(cls, blocks: Iterable[TokenBlock]) -> "TokenizedDataset":
        """From blocks of rows, in memory.

        Raises:
            UserError: there is no row, or one without a token.
        """
        tokens, loss_masks, facts, reports = zip(*blocks, strict=True)
        report = reports[0]
        for other in reports[1:]:
            report.add(other)
        return cls.assemble(np.concatenate(tokens), np.concatenate(loss_masks), RowFacts.joined(facts), report)

    @classmethod
    def assemble(
        cls, tokens: Int32, loss_mask: Bool, facts: RowFacts, report: TokenizationReport
    ) -> "TokenizedDataset":
        """From flat arrays; completes ``report``.

        Raises:
            UserError: there is no row, or one without a token.
        """
        if not len(facts.lengths) or facts.lengths.min() == 0:
            raise UserError("a data set needs at least one row, and every row at least one token")
        report.tokens, report.trained_tokens = int(facts.lengths.sum()), int(facts.num_targets.sum())
        report.duplicates = len(facts.digests) - len(np.unique(facts.digests))
        return cls(
            tokens=tokens,
            loss_mask=loss_mask,
            offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(facts.lengths)]),
            source_rows=facts.source_rows,
            num_targets=facts.num_targets,
            report=report,
            fingerprint=hashlib.blake2b(facts.digests.tobytes(), digest_size=16).hexdigest(),
            row_weights=None if (facts.weights == 1).all() else facts.weights,
        )

    def mixed(self, source: Mixed) -> "TokenizedDataset":
        """The same rows, as those of a mixture."""
        parts = source.parts_of(self.source_rows)
        digest = hashlib.blake2b(repr((self.fingerprint, source.shares)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(parts).data)
        part_names, shares = source.part_names, source.shares
        return replace(self, parts=parts, part_names=part_names, shares=shares, fingerprint=digest.hexdigest())

    def __len__(self) -> int:
        return len(self.source_rows)

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, as views into the flat arrays."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        cut = slice(self.offsets[index], self.offsets[index + 1])
        weight = 1.0 if self.row_weights is None else float(self.row_weights[index])
        return Sample(self.tokens[cut], self.loss_mask[cut], weight)

    @cached_property
    def lengths(self) -> Int64:
        """[R] tokens of each sample."""
        return np.diff(self.offsets)


def _digest(sample: Sample) -> bytes:
    """Equal for equal rows, whatever else is in the data set."""
    digest = hashlib.blake2b(sample.input_ids.tobytes(), digest_size=16)
    digest.update(sample.loss_mask.tobytes())
    digest.update(np.float32(sample.weight).tobytes())
    return digest.digest()
