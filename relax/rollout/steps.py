"""One decoding step over slots: the model's forward for one token a row. Op by op, or in a form that can be recorded.

Legend: n live rows, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from relax.rollout import slot_attention
from relax.rollout.attention_choice import use_attention
from relax.rollout.columns import FixedColumns
from relax.rollout.graphs import Compute, Record
from relax.rollout.slots import Slots

Step = Callable[[Tensor, Tensor], Tensor]
"""Tokens [n] and their positions [n] to the next logits [n, V]."""

_MIN_COLUMNS = 64


def next_logits(model: PreTrainedModel, slots: Slots, tokens: Tensor, positions: Tensor) -> Tensor:
    """A ``Step``, as it is."""
    use_attention(model, slot_attention.NAME)
    output = model(
        input_ids=tokens[:, None],
        attention_mask=slots.mask(len(tokens)),
        position_ids=positions[:, None],
        past_key_values=slots,
        use_cache=True,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


class FixedStep:
    """A ``Step`` of few shapes, on tensors that stay where they are; each shape is recorded once.

    Rows are rounded up to a power of two, columns to a quarter of one: places without a live row compute nonsense that
    no one looks at, columns not yet written are masked.

    Args:
        model: a causal language model.
        slots: with ``columns``.
        columns: what a step looks at.
        num_rows: places in ``slots``.
        record: see ``relax.rollout.graphs``.
    """

    def __init__(
        self, model: PreTrainedModel, slots: Slots, columns: FixedColumns, num_rows: int, record: Record
    ) -> None:
        self._model, self._slots, self._columns, self._record = model, slots, columns, record
        self._tokens = torch.zeros(num_rows, dtype=torch.int64, device=model.device)
        self._positions = torch.zeros_like(self._tokens)
        self._computes: dict[tuple[int, int], Compute] = {}

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The logits hold until the next call."""
        live = len(tokens)
        self._tokens[:live] = tokens
        self._positions[:live] = positions
        rows = rounded_rows(live, len(self._tokens))
        columns = rounded_columns(self._columns.at + 1, self._columns.size)
        self._columns.show(columns)
        if (rows, columns) not in self._computes:
            # Not a method of this object: a cycle would keep the GPU's memory until Python looks for cycles.
            tensors = self._tokens[:rows], self._positions[:rows]
            self._computes[rows, columns] = self._record(partial(next_logits, self._model, self._slots, *tensors))
        return self._computes[rows, columns]()[:live]


def rounded_rows(live: int, places: int) -> int:
    """The next power of two, or all places."""
    return min(1 << (live - 1).bit_length(), places)


def rounded_columns(used: int, size: int) -> int:
    """The next multiple of a quarter of the power of two below (at least 64), or all columns: four sizes an octave."""
    quarter = max((1 << (used.bit_length() - 1)) // 4, _MIN_COLUMNS)
    return min(-(-used // quarter) * quarter, size)
