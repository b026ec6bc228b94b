"""Attention for packed rows: several documents end to end in one row, each alone with itself.

Registered with transformers under the name ``documents``. Outside a packed row it is plain sdpa. Inside one, each
document goes through the kernel by itself, those of equal length together: no score between two documents is ever
computed, nothing is padded or gathered, and a row costs what its documents cost.

The mask of a packed row is built by transformers itself, for the longest document alone: the model's own sliding
windows or chunks are honoured, and a purely causal layer needs no mask at all.
"""

from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "documents"


@dataclass
class Documents:
    """Where the documents of a packed row lie: end to end, longest first.

    ``groups`` holds (number of documents, length) of each run of equally long ones.
    """

    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: list[int]) -> "Documents":
        """Documents of ``lengths`` (tokens), which must be sorted from long to short."""
        assert lengths == sorted(lengths, reverse=True), "documents lie longest first"
        return cls(tuple(lengths), tuple((len([*run]), length) for length, run in groupby(lengths)))

    @property
    def longest_mask(self) -> Tensor:
        """[1, T] ones, T the longest document: makes transformers build the mask of that document alone."""
        return torch.ones(1, self.lengths[0], dtype=torch.bool)

    def flash_arguments(self, device: torch.device) -> dict[str, Any]:
        """What transformers' flash attention takes in order to look at each document alone."""
        ends = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32).to(device, non_blocking=True)
        longest = self.lengths[0]
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


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
    sizes = [count * length for count, length in documents.groups]
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), documents.groups, strict=True)
    outputs = []
    for q, k, v, (count, length) in parts:
        mask = None if attention_mask is None else attention_mask[:, :, :length, :length]
        batch = (q, k, v) if count == 1 else (_batched(x, count, length) for x in (q, k, v))
        output, _ = sdpa_attention_forward(module, *batch, mask, **options)  # [b, t, heads, D]
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[None], None


def _batched(x: Tensor, count: int, length: int) -> Tensor:
    """[1, H, b t, D] -> [b, H, t, D], a view."""
    return x[0].unflatten(1, (count, length)).transpose(0, 1)


def document_mask(*args: Any, q_length: int, kv_length: int, **options: Any) -> Tensor | None:
    """Transformers' mask function: in a packed row (more queries than ``Documents.longest_mask`` has keys) the mask of
    the longest document, else that of sdpa.
    """
    return sdpa_mask(*args, q_length=min(q_length, kv_length), kv_length=kv_length, **options)


AttentionInterface.register(NAME, document_attention)
AttentionMaskInterface.register(NAME, document_mask)
