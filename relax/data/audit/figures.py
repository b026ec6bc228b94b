"""What a data set looks like before a run spends hours on it: the numbers alone. Prints nothing, judges nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from relax.data.audit.fill import Fill
from relax.data.audit.histogram import Histogram
from relax.data.audit.marked_row import MarkedRow, mark_row
from relax.data.tokens.tokenized import TokenizedDataset
from relax.seeding import mix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row: percentiles (each the length of some row), the longest, and how they are spread."""

    p5: int
    p50: int
    p95: int
    p99: int
    longest: int
    histogram: Histogram

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> "Lengths":
        """From the tokens of each row."""
        p5, p50, p95, p99 = np.percentile(lengths, [5, 50, 95, 99], method="inverted_cdf").tolist()
        return cls(p5, p50, p95, p99, int(lengths.max()), Histogram.of(lengths))


@dataclass(frozen=True)
class Weights:
    """Of the rows, from the weight column."""

    lowest: float
    mean: float
    highest: float


@dataclass(frozen=True)
class Part:
    """One part of a mixture: rows it has, rows an epoch draws from it, and its share of the epoch's tokens."""

    name: str
    rows: int
    drawn: int
    share_of_rows: float
    share_of_tokens: float

    @property
    def passes(self) -> float:
        """How often an epoch reads each of its rows."""
        return self.drawn / max(1, self.rows)


@dataclass(frozen=True)
class Audit:
    """Plain numbers of a tokenized data set; ``dataclasses.asdict`` of it is JSON.

    ``rows`` were read; every other count but ``dropped`` is of the ``rows_kept`` to train on, after truncation.
    ``streamed``: only the first rows were looked at.
    """

    rows: int
    rows_kept: int
    tokens: int
    trained_tokens: int
    lengths: Lengths
    dropped: dict[str, int]
    truncated: int
    truncated_tokens: int
    without_end_of_turn: int
    duplicates: int
    double_bos: int
    unknown_tokens: int
    unread_columns: tuple[str, ...]
    weights: Weights | None
    fill: Fill | None
    parts: tuple[Part, ...]
    example: MarkedRow
    streamed: bool

    @property
    def trained_share(self) -> float:
        """Of the tokens."""
        return self.trained_tokens / self.tokens


def audit(
    data: TokenizedDataset,
    tokenizer: "PreTrainedTokenizerBase",
    micro_batches: Iterable[Sequence[int]] = (),
    packed: bool = False,
    capacity: int | None = None,
    *,
    sequences: bool = False,
    seed: int = 0,
    streamed: bool = False,
) -> Audit:
    """Look at a data set; reads lengths and one row, not the tokens.

    ``micro_batches``: the samples of each micro-batch over all ranks; of a mixture those of one whole epoch, else the
    first ones will do. None of them: every row once.
    ``capacity``: the tokens that a packed one has room for. ``sequences``: they are packed sequences, of which a
    micro-batch may hold several. ``seed`` chooses the row that is shown.
    """
    report = data.report
    batches = [np.asarray(batch, dtype=np.int64) for batch in micro_batches if len(batch)]
    index = int(np.random.default_rng(mix(seed, "audit")).integers(len(data)))
    return Audit(
        rows=report.rows,
        rows_kept=len(data),
        tokens=report.tokens,
        trained_tokens=report.trained_tokens,
        lengths=Lengths.of(data.lengths),
        dropped=dict(report.dropped),
        truncated=report.truncated,
        truncated_tokens=report.truncated_tokens,
        without_end_of_turn=report.without_end_of_turn,
        duplicates=report.duplicates,
        double_bos=report.double_bos,
        unknown_tokens=report.unknown_tokens,
        unread_columns=report.unread_columns,
        weights=_weights(data),
        fill=Fill.of(data.lengths, batches, packed, capacity, sequences),
        parts=_parts(data, np.concatenate(batches) if batches else np.arange(len(data))),
        example=mark_row(data[index], int(data.source_rows[index]) + 1, tokenizer),
        streamed=streamed,
    )


def _weights(data: TokenizedDataset) -> Weights | None:
    weights = data.row_weights
    return None if weights is None else Weights(float(weights.min()), float(weights.mean()), float(weights.max()))


def _parts(data: TokenizedDataset, drawn: npt.NDArray[np.int64]) -> tuple[Part, ...]:
    """The parts of a mixture, of which an epoch draws the rows ``drawn``."""
    if data.parts is None:
        return ()
    of_drawn, number = data.parts[drawn], len(data.part_names)
    rows = np.bincount(data.parts, minlength=number).tolist()
    counts = np.bincount(of_drawn, minlength=number).tolist()
    tokens = np.bincount(of_drawn, weights=data.lengths[drawn], minlength=number)
    columns = zip(data.part_names, rows, counts, (tokens / tokens.sum()).tolist(), strict=True)
    return tuple(Part(name, has, drew, drew / len(drawn), share) for name, has, drew, share in columns)
