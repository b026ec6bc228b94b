"""Attention for packed rows: several documents end to end in one row, each alone with itself.

Registered with transformers under the name ``documents``. Outside a packed row it is plain sdpa. Inside one, documents
of nearly equal length go through the kernel together, so no score between two documents is ever computed and a
row costs what its documents cost.

The mask of a packed row is built by transformers itself, for the longest document alone: the model's own sliding
windows or chunks are honoured, and a purely causal layer needs no mask at all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "documents"
MAX_PADDING = 0.25
"""Documents share a kernel call while padding them to the longest adds at most this share."""


@dataclass
class Documents:
    """Where the documents of a packed row lie: end to end, longest first.

    ``groups`` holds (number of documents, padded length, index) with index [b, t] into the group's own tokens, or None
    where all its documents are equally long.
    """

    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int, Tensor | None], ...]

    @classmethod
    def of(cls, lengths: list[int]) -> "Documents":
        """Group documents of ``lengths`` (tokens), which must be sorted from long to short."""
        assert lengths == sorted(lengths, reverse=True), "documents lie longest first"
        groups: list[list[int]] = []
        for length in lengths:
            last = groups[-1] if groups else []
            if last and last[0] * (len(last) + 1) <= (1 + MAX_PADDING) * (sum(last) + length):
                last.append(length)
            else:
                groups.append([length])
        return cls(tuple(lengths), tuple((len(g), g[0], _index(g)) for g in groups))

    @property
    def group_tokens(self) -> list[int]:
        """Real tokens of each group."""
        starts = iter(self.lengths)
        return [sum(next(starts) for _ in range(count)) for count, _, _ in self.groups]

    @property
    def longest_mask(self) -> Tensor:
        """[1, T] ones, T the longest document: makes transformers build the mask of that document alone."""
        return torch.ones(1, self.lengths[0], dtype=torch.bool)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Documents":
        """The same with its indices on ``device``."""
        moved = ((b, t, None if i is None else i.to(device, non_blocking=non_blocking)) for b, t, i in self.groups)
        return Documents(self.lengths, tuple(moved))


def _index(lengths: list[int]) -> Tensor | None:
    """[b, t]: the tokens of each document, its last one repeated as padding (causal: no real token sees it)."""
    if lengths[0] == lengths[-1]:
        return None
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    return starts[:, None] + torch.arange(lengths[0]).minimum(sizes[:, None] - 1)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    documents: Documents | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function: query [1, heads, N, D] of a packed row -> [1, N, heads, D].

    Raises:
        ValueError: from sdpa, where the model needs what it lacks (soft-capped scores).
    """
    if documents is None or len(documents.lengths) == 1:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    sizes = documents.group_tokens
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), documents.groups, strict=True)
    outputs = []
    for q, k, v, (count, length, index) in parts:
        batch = [_unpack(x, count, length, index) for x in (q, k, v)]
        mask = None if attention_mask is None else attention_mask[:, :, :length, :length]
        output, _ = sdpa_attention_forward(module, *batch, mask, **options)  # [b, t, heads, D]
        outputs.append(_pack(output, q.shape[2], index))
    return torch.cat(outputs, dim=1), None


def _unpack(x: Tensor, count: int, length: int, index: Tensor | None) -> Tensor:
    """[1, H, n, D] -> [b, H, t, D]."""
    if index is not None:
        x = x.index_select(2, index.flatten())
    return x.reshape(x.shape[1], count, length, x.shape[3]).transpose(0, 1)


def _pack(x: Tensor, size: int, index: Tensor | None) -> Tensor:
    """[b, t, H, D] -> [1, n, H, D], padding dropped."""
    flat = x.reshape(1, -1, *x.shape[2:])
    if index is None:
        return flat
    first = torch.ones_like(index, dtype=torch.bool)
    first[:, 1:] = index[:, 1:] > index[:, :-1]
    return flat[:, first.flatten()][:, :size]


def document_mask(*args: Any, q_length: int, kv_length: int, **options: Any) -> Tensor | None:
    """Transformers' mask function: in a packed row (more queries than ``Documents.longest_mask`` has keys) the mask of
    the longest document, else that of sdpa.
    """
    return sdpa_mask(*args, q_length=min(q_length, kv_length), kv_length=kv_length, **options)


AttentionInterface.register(NAME, document_attention)
AttentionMaskInterface.register(NAME, document_mask)
