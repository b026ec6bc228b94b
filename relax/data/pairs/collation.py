"""Pairs -> a micro-batch, padded or packed: the two of a pair in the same one.

Legend: P pairs, B sequences, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relax.data.batching.batches import Batch, collate_packed, collate_padded
from relax.data.pairs.dataset import Pair
from relax.data.tokens.tokenized import Int32, Sample


@dataclass(kw_only=True)
class PairBatch(Batch):
    """A micro-batch of P pairs. ``positions`` [2 P]: the last tokens of the chosen answers, then of the rejected ones.

    A pair is what a target is elsewhere: ``weights``, ``owners`` and ``rows`` are [P], and there are no ``targets``.
    """

    margins: Tensor
    """[P], by how much each chosen answer should score above the rejected one."""


def collate_pairs(pairs: Sequence[Pair], rows: Sequence[int] = (), *, packed: bool, pad_id: int = 0) -> PairBatch:
    """All answers in one micro-batch; ``rows`` are the numbers of the pairs."""
    collate = collate_packed if packed else collate_padded
    samples = [_sample(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)]
    batch = collate(samples, range(1, len(samples) + 1), pad_id)
    ends = batch.lengths.cumsum(0) - 1 if packed else _ends_of_rows(batch)
    places = ends[torch.tensor(batch.rows).argsort()]  # packing puts the longest first
    fields = vars(batch) | {
        "positions": torch.cat([places[::2], places[1::2]]),
        "weights": torch.ones(len(pairs)),
        "owners": torch.arange(len(pairs)),
        "rows": list(rows) or list(range(1, len(pairs) + 1)),
        "step_targets": float(len(pairs)),
        "step_weight": float(len(pairs)),
        "step_sequences": float(len(pairs)),
    }
    return PairBatch(**fields, margins=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32))


def _sample(ids: Int32) -> Sample:
    return Sample(ids, np.zeros(len(ids), dtype=np.bool_))


def _ends_of_rows(batch: Batch) -> Tensor:
    rows, longest = batch.input_ids.shape
    return torch.arange(rows) * longest + batch.lengths - 1
