"""Two-layer models of several architectures, and how a refusal must look."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from relax.errors import UserError

VOCABULARY = 300  # room for the byte tokenizers
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64}


def tiny_model(kind: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
        return GPT2LMHeadModel(GPT2Config(**(sizes | changes))).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**(_SIZES | {"vocab_size": VOCABULARY, "head_dim": 4} | changes))).eval()
    return LlamaForCausalLM(LlamaConfig(**(_SIZES | {"vocab_size": VOCABULARY} | changes))).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of two fixed rows, in evaluation mode."""
    ids = torch.arange(14).view(2, 7) * 5 + 1
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def shake(model: torch.nn.Module, scale: float = 0.05) -> None:
    """Move every trainable weight, as training would."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * scale


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """A UserError of one line that contains ``words`` and drags no other traceback along."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for word in words:
        assert word in message, message
