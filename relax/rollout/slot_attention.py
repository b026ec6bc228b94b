"""Attention of one new token a row over the slots of ``relax.rollout.slots``.

Registered with transformers under the name ``slots``, for decoding alone; prompts are read with the model's own
attention. It honours what models ask of an attention function: scaling, soft-capped scores, attention sinks, fewer key
heads than query heads. A model that needs something else is found by ``relax.rollout.probe``.

Legend: n rows, H key heads, g query heads to a key head, S columns, D head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "slots"


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function.

    Args:
        module: the attention layer, not needed.
        query: [n, H g, 1, D]; key: [n, H, S, D]; value: [n, H, S, Dv].
        attention_mask: [n, 1, 1, S or more], added to the scores; a layer with a window has fewer columns, the last.
        scaling: of the scores; D^-1/2 where None.
        softcap: scores become softcap tanh(scores / softcap).
        s_aux: [H g], the sinks: logits of a column without a value.
        options: what other attentions need.

    Returns:
        [n, 1, H g, Dv] and no weights.
    """
    rows, heads, _, width = query.shape
    key_heads, columns = key.shape[1:3]
    query = query * (width**-0.5 if scaling is None else scaling)
    scores = query.reshape(rows, key_heads, -1, width) @ key.transpose(2, 3)  # [n, H, g, S]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask[..., -columns:]
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, key_heads, -1, 1).expand(rows, -1, -1, -1)
        scores = torch.cat([scores, sinks], -1)
    dtype = torch.float32 if scores.dtype.itemsize < 4 else None  # naming the dtype they have costs a copy
    weights = scores.softmax(-1, dtype=dtype).to(value.dtype)
    output = weights[..., :columns] @ value  # [n, H, g, Dv]
    return output.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, slot_attention)
