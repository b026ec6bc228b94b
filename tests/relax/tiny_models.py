"""Two-layer models of several architectures, and how a refusal must look."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


def network_calls(program: str, folder: Path, without: tuple[str, ...] = ()) -> list[str]:
    """Run ``program`` in a process of its own, the hub not switched off, and list what it asks of the network.

    Reported rather than raised: libraries swallow the errors of their telemetry.
    """
    watch = (
        "import sys\n"
        "names = {'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto'}\n"
        "sys.addaudithook(lambda event, args: print('NETWORK', event, args) if event in names else None)\n"
    )
    quiet = {"HF_HUB_OFFLINE", "CI", "PYTEST_CURRENT_TEST", *without}  # some telemetry spares tests
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    command = [sys.executable, "-c", watch + program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("NETWORK")]
