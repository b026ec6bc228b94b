"""What a micro-batch holds, and how samples become one: padded, or packed end to end. Decides nothing about which.

Each micro-batch carries the denominators of the whole optimizer step, so how a step is cut never changes the gradient.

Legend: B sequences, T tokens, K training targets of a micro-batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from relax.attention import Documents
    from relax.data.tokens.tokenized import Sample


@dataclass
class Batch:
    """One micro-batch. Padded: [B, T], padding on the right. Packed: [1, T], documents end to end, longest first."""

    input_ids: Tensor
    """[B, T]"""
    positions: Tensor
    """[K], into the B x T tokens: where the state lies that predicts each target."""
    targets: Tensor
    """[K], token ids."""
    weights: Tensor
    """[K], fp32: that of the target's row, or 0 in a micro-batch that only fills up the step."""
    owners: Tensor
    """[K], into ``rows``: whose target it is."""
    rows: list[int]
    """Where they stood in the data set, counted from 1: for messages, not for the maths."""
    num_tokens: int
    """Real tokens, padding not counted."""
    lengths: Tensor
    """[S], tokens of each sequence: of each row of a padded batch, of each document of a packed one."""
    step_targets: float = 1.0
    """Targets of the whole optimizer step, over all ranks and micro-batches: the denominator of a mean over tokens."""
    step_weight: float = 1.0
    """The sum of ``weights`` over the whole optimizer step: the denominator of a weighted mean over tokens."""
    step_sequences: float = 1.0
    """Sequences of the whole optimizer step: the denominator of a mean over sequences."""
    step_micro_batches: int = 1
    """World size x accumulation steps."""
    stream_position: int = 0
    """Of a streamed batch: rows of the epoch that were read up to the end of its optimizer step."""
    position_ids: Tensor | None = None
    """[1, T] of a packed batch: restarts with each document."""
    documents: "Documents | None" = None
    longest_mask: Tensor | None = None
    """See ``Documents.longest_mask``."""

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> "Batch":
        """The same batch on ``device``; a copy to a GPU is not waited for, which Lightning does not ask for itself."""
        asynchronous = torch.device(device).type == "cuda" if non_blocking is None else non_blocking
        return self._map(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for a data loader that feeds a GPU."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {k: function(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def collate_padded(samples: "Sequence[Sample]", rows: Sequence[int] = (), pad_id: int = 0) -> Batch:
    """One row a sample, padded on the right to the longest."""
    longest = max(len(s.input_ids) for s in samples)
    ids = np.full((len(samples), longest), pad_id, dtype=np.int64)
    for row, sample in zip(ids, samples, strict=True):
        row[: len(sample.input_ids)] = sample.input_ids
    starts = [i * longest for i in range(len(samples))]
    return _batch(torch.from_numpy(ids), samples, starts, rows)


def collate_packed(samples: "Sequence[Sample]", rows: Sequence[int] = (), pad_id: int = 0) -> Batch:
    """All samples end to end in one row, longest first (``pad_id`` is not needed and taken for symmetry)."""
    from relax.attention import Documents

    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].input_ids))
    samples, rows = [samples[i] for i in order], [rows[i] for i in order] if rows else ()
    lengths = [len(s.input_ids) for s in samples]
    ids = np.concatenate([np.asarray(s.input_ids, dtype=np.int64) for s in samples])
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    documents = Documents.of(lengths)
    return replace(
        _batch(torch.from_numpy(ids)[None], samples, starts, rows),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        documents=documents,
        longest_mask=documents.longest_mask,
    )


def _batch(input_ids: Tensor, samples: "Sequence[Sample]", starts: list[int], rows: Sequence[int]) -> Batch:
    """Add the targets: token t of a sample is predicted by the state at t - 1."""
    trained = [np.flatnonzero(np.asarray(s.loss_mask)[1:]) for s in samples]
    positions = torch.from_numpy(np.concatenate([where + start for where, start in zip(trained, starts, strict=True)]))
    owners = torch.from_numpy(np.repeat(np.arange(len(samples)), [len(where) for where in trained]))
    weights = torch.tensor([s.weight for s in samples])[owners]
    lengths = torch.tensor([len(s.input_ids) for s in samples])
    return Batch(
        input_ids=input_ids,
        positions=positions,
        targets=input_ids.flatten()[positions + 1],
        weights=weights,
        owners=owners,
        rows=list(rows) or list(range(1, len(samples) + 1)),
        num_tokens=int(lengths.sum()),
        lengths=lengths,
        step_targets=float(max(1, len(positions))),
        step_weight=float(weights.sum()) or 1.0,
        step_sequences=float(len(samples)),
    )
