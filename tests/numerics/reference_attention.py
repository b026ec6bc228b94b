"""Attention backends that need a GPU, in plain fp64 arithmetic: what transformers hands them is as it would be there.

Not the kernels themselves: tests marked gpu run those.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations import flex_attention


class InDouble(TorchFunctionMode):
    """Models compute norms, routers and rotary angles in fp32 whatever their weights are; here they do so in fp64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **kwargs)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float | None = None) -> Tensor:
    """[B, H, T, D] each, grouped keys and values: softmax(cap(q k)) v where ``mask`` is true."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.mT * scale
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def _flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, scaling: float,
    sliding_window: int | None = None, softcap: float | None = None, cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None, max_length_q: int | None = None, max_length_k: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """A block of causal attention for each document, with nothing but the arguments of the varlen kernel to go by."""
    ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    assert cu_seq_lens_q is cu_seq_lens_k
    assert cu_seq_lens_q is None or max_length_q == max_length_k == int(cu_seq_lens_q.diff().max())
    outputs = []
    for start, end in pairwise(ends):
        place = torch.arange(end - start)
        distance = place[:, None] - place
        mask = (distance >= 0) & (distance < (sliding_window or end))
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        outputs.append(_attend(q, k, v, mask, scaling, softcap))
    return torch.cat(outputs, 2).transpose(1, 2), None


def _flex(
    query: Tensor, key: Tensor, value: Tensor, *, score_mod: Any, block_mask: BlockMask, scale: float,
    training: bool, **_: Any,
) -> Tensor:  # fmt: skip
    mask = create_mask(block_mask.mask_mod, 1, 1, query.shape[2], key.shape[2], device="cpu")
    cap = next((c.cell_contents for c in score_mod.__closure__ or () if isinstance(c.cell_contents, float)), None)
    return _attend(query, key, value, mask, scale, cap)


def use(model: Any, backend: str) -> None:
    """As ``set_attn_implementation``, which would look for the real flash attention."""
    model.config._attn_implementation = backend


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash_attention_2 and flex_attention, forward and backward, on a CPU."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", _flash)
    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", _flex)
    uncompiled = lambda *args, _compile, **options: create_block_mask(*args, **options)  # noqa: E731
    monkeypatch.setattr(transformers.masking_utils, "create_block_mask", uncompiled)
