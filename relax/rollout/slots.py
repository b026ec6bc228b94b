"""The model's memory of the live rows: keys and values in memory that is taken once.

All rows write the same column in a step (``relax.rollout.columns``), so a step is one assignment a layer. A row's
tokens are the columns from ``starts[row]`` to the write column; what lies before belongs to no one and is masked. A row
that joins is written so that it ends at the write column. When columns run out, everything slides left.

Legend: R rows, H heads, S columns, D head size, P prompts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from relax.rollout.columns import Columns, Mask


class SlotLayer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """Keys and values of one layer, [R, H, S, D]."""

    def __init__(self, columns: Columns, num_rows: int, like: CacheLayerMixin, window: int | None) -> None:
        super().__init__()
        self.columns, self.window, self.is_sliding = columns, window, window is not None
        # Zeros, not garbage: a masked column has weight 0, and 0 x NaN is NaN.
        self.keys, self.values = (
            x.new_zeros(num_rows, x.shape[1], columns.size, x.shape[3]) for x in (like.keys, like.values)
        )
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **options: object) -> tuple[Tensor, ...]:
        """Write the new token's states [n, H, 1, D]; what it may look at, [n, H, columns, D] each."""
        rows = len(key_states)
        self.columns.write(self.keys, key_states)
        self.columns.write(self.values, value_states)
        return tuple(self.columns.seen(memory, rows, self.window) for memory in self.tensors())

    def get_seq_length(self) -> int:
        """Columns written, as if no row had joined late; the rows' own lengths are in their position ids."""
        return self.columns.at

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As for a cache that holds every column; no mask is built from it, because one is given."""
        return self.columns.at + query_length, 0

    def get_max_length(self) -> int:
        """S"""
        return self.columns.size

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values


class Slots(Cache):  # type: ignore[misc, unused-ignore]
    """A transformers cache of R rows and S columns, and the mask that goes with it.

    Args:
        num_rows: R.
        columns: S of them, at least the longest prompt and its completion, none written yet; the write column never
            falls below where it begins, which is the longest prompt that will ever join.
        like: a cache of the model, any rows: what its layers look like.
    """

    def __init__(self, num_rows: int, columns: Columns, like: DynamicCache) -> None:
        self.columns, self._longest_prompt = columns, columns.at
        self.starts: list[int] = []
        pairs = zip(like.layers, layer_windows(like), strict=True)
        super().__init__(layers=[SlotLayer(columns, num_rows, layer, window) for layer, window in pairs])
        self._mask = self.layers[0].keys.new_full((num_rows, 1, 1, columns.size), -torch.inf)

    def mask(self, rows: int) -> Mask:
        """Of the first ``rows`` rows, for what they may look at in the step to come."""
        return self.columns.mask(self._mask, rows)

    def add(self, read: DynamicCache, lengths: Sequence[int], copies: Sequence[int]) -> None:
        """Let rows join: ``copies[p]`` of each of the P prompts in ``read``, right-aligned, ``lengths[p]`` tokens."""
        at, first = self.columns.at, len(self.starts)
        owners = torch.arange(len(lengths)).repeat_interleave(torch.tensor(copies)).to(self._mask.device)
        rows = slice(first, first + len(owners))
        for layer, source in zip(self.layers, read.layers, strict=True):
            for ours, theirs in zip(layer.tensors(), (source.keys, source.values), strict=True):
                ours[rows, :, at - theirs.shape[2] : at] = theirs[owners]
        self._mask[rows] = -torch.inf
        for length, count in zip(lengths, copies, strict=True):
            self._mask[len(self.starts) : len(self.starts) + count, :, :, at - length : at] = 0
            self.starts += [at - length] * count
        self.columns.first = min(self.starts)

    def advance(self) -> None:
        """Say that the write column has been written by every layer."""
        self.columns.at += 1

    def make_room(self) -> None:
        """See to it that a column is free, and let every row look at it."""
        columns = self.columns
        if columns.at == columns.size:
            self._slide_left()
        # Of places without a live row, too: a row that sees no column at all would be NaN for ever.
        self._mask[..., columns.at] = 0

    def _slide_left(self) -> None:
        columns = self.columns
        shift = min(columns.first, columns.at - self._longest_prompt)
        assert shift > 0, "a row is longer than the columns allow"
        for tensor in (x for layer in self.layers for x in layer.tensors()):
            _slide(tensor, 2, shift)
        _slide(self._mask, 3, shift)
        self._mask[..., columns.size - shift :] = -torch.inf
        columns.at, columns.first = columns.at - shift, columns.first - shift
        self.starts = [start - shift for start in self.starts]

    def keep(self, places: Sequence[int]) -> None:
        """Row i becomes what row ``places[i]`` was; only rows that move are copied."""
        moves = [(new, old) for new, old in enumerate(places) if new != old]
        self.starts = [self.starts[place] for place in places]
        if moves:
            new, old = torch.tensor(moves, device=self._mask.device).unbind(1)
            used = slice(self.columns.first, self.columns.at)
            for keys, values in (layer.tensors() for layer in self.layers):
                keys[new, :, used] = keys[old, :, used]
                values[new, :, used] = values[old, :, used]
            self._mask[new] = self._mask[old]
        if not places:
            self.columns.at = self._longest_prompt
        self.columns.first = min(self.starts, default=self.columns.at)


def layer_windows(like: DynamicCache) -> list[int | None]:
    """Of each layer, how many tokens it looks back; None: all."""
    return [layer.sliding_window if layer.is_sliding else None for layer in like.layers]


def _slide(tensor: Tensor, dim: int, shift: int) -> None:
    """Move columns ``shift`` to the left; cloned, because source and target overlap."""
    size = tensor.shape[dim]
    tensor.narrow(dim, 0, size - shift).copy_(tensor.narrow(dim, shift, size - shift).clone())
