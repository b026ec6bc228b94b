"""Which models may pack: the probe against real architectures, and against leaks made to measure."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn

from relax import causal_lm
from relax.data.batching.batches import Batch
from relax.isolation import find_fault

V = 101
BASE: dict[str, Any] = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
SMALL = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {f"linear_{name}": 8 if "dim" in name else 2 for name in ("key_head_dim", "value_head_dim", "num_key_heads")}
DELTA = {**LINEAR, "linear_num_value_heads": 2, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
XGLM = {"vocab_size": V, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}
OSS = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
SPARSE = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}

RECURRENT = {
    "mamba": lambda: T.MambaConfig(**SMALL),
    "rwkv": lambda: T.RwkvConfig(**SMALL),
    "qwen3_next": lambda: T.Qwen3NextConfig(**BASE, **DELTA, **MOE),
    "qwen3_5": lambda: T.Qwen3_5TextConfig(**BASE, **DELTA),
    "falcon_h1": lambda: T.FalconH1Config(**BASE, **MAMBA2, mamba_d_ssm=64),
    "bamba": lambda: T.BambaConfig(**BASE, **MAMBA2, attn_layer_indices=[1]),
    "recurrent_gemma": lambda: T.RecurrentGemmaConfig(**BASE, block_types=["recurrent", "attention"], lru_width=32),
}
LEAKY = {
    "lfm2, short convolutions": lambda: T.Lfm2Config(**BASE, layer_types=["conv", "full_attention"]),
    "minimax, linear attention": lambda: T.MiniMaxConfig(**BASE, head_dim=8, num_local_experts=4),
    "bloom, alibi": lambda: T.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4),
    "mpt, alibi": lambda: T.MptConfig(vocab_size=V, d_model=32, n_layers=2, n_heads=4),
    "falcon, attention of its own": lambda: T.FalconConfig(**SMALL, num_attention_heads=4),
    "gpt_oss, mask without positions": lambda: T.GptOssConfig(**BASE, **OSS),
}
OTHERS = {
    "xglm": (lambda: T.XGLMConfig(**XGLM), "lets documents see one another with attn_implementation=eager"),
    "bart": (
        lambda: T.BartConfig(**{"vocab_size": V, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}),
        "gives a document other states in a packed row than alone with attn_implementation=sdpa",
    ),
    "deepseek_v32": (
        lambda: T.DeepseekV32Config(**(BASE | {"num_key_value_heads": 4}), **LATENT, **SPARSE, **EXPERTS),
        r"fails on packed rows \(The size of tensor a",
    ),
    "llama4": (
        lambda: T.Llama4TextConfig(**BASE, head_dim=8, intermediate_size_mlp=48, num_local_experts=4),
        "scales its attention by a token's place in the row",
    ),
}
CAN = {
    "llama": lambda: T.LlamaConfig(**BASE),
    "qwen2": lambda: T.Qwen2Config(**BASE),
    "gemma3": lambda: T.Gemma3TextConfig(**BASE, head_dim=8, sliding_window=4),
    "gpt2": lambda: T.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "qwen3_moe, grouped": lambda: T.Qwen3MoeConfig(**(BASE | {"num_hidden_layers": 12}), **MOE, head_dim=8),
    "ctrl, scales embeddings in place": lambda: T.CTRLConfig(vocab_size=V, n_embd=32, dff=48, n_layer=2, n_head=4),
}


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(config).to(dtype)


def assert_refused(model: Any, reason: str) -> None:
    before = model.config._attn_implementation
    isolation = causal_lm.isolate_documents(model)
    assert not isolation
    assert isolation.reason.startswith(f"{type(model).__name__} ")
    assert re.search(reason, isolation.reason), isolation.reason
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_state_is_refused(name: str, dtype: torch.dtype) -> None:
    assert_refused(build(RECURRENT[name](), dtype), "lets documents see one another through a recurrent state")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEAKY)
def test_a_layer_that_mixes_neighbours_is_refused(name: str, dtype: torch.dtype) -> None:
    assert_refused(build(LEAKY[name](), dtype), "lets documents see one another with attn_implementation=(sdpa|eager)$")


@pytest.mark.parametrize("name", OTHERS)
def test_every_refusal_says_why(name: str) -> None:
    config, reason = OTHERS[name]
    assert_refused(build(config()), reason)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CAN)
def test_no_model_that_can_is_refused(name: str, dtype: torch.dtype) -> None:
    model = build(CAN[name](), dtype)
    assert causal_lm.isolate_documents(model).reason == ""
    assert model.config._attn_implementation == "documents"
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", CAN)
def test_nor_in_mixed_precision(name: str) -> None:
    model = build(CAN[name]())
    with torch.autocast("cpu", torch.bfloat16):
        causal_lm.check_head(model)
        assert causal_lm.isolate_documents(model).reason == ""


# The probe itself, on states that are means over a document's tokens so far, and what a test adds.


def owners(batch: Batch) -> Tensor:
    """[T], the document of each token."""
    lengths = batch.input_ids.shape[1:] if batch.documents is None else batch.documents.lengths
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def fault_of(leak: Callable[[Tensor], Tensor], *, dtype: torch.dtype = torch.float32, normed: bool = False) -> str:
    """``leak``: how far documents (a column) look at documents (a row), as a share of what they see of themselves."""
    torch.manual_seed(0)
    embedding = nn.Embedding(V, 16, dtype=dtype)

    def states(batch: Batch) -> Tensor:
        owner = owners(batch)
        weights = torch.tril((owner[:, None] == owner).float())
        weights = (weights + leak(owner[:, None] - owner)) / weights.sum(-1, keepdim=True)
        mixed = weights.to(dtype) @ embedding(batch.input_ids)[0]
        return nn.functional.layer_norm(mixed, [16]) if normed else mixed

    return find_fault(states, embedding, V, torch.device("cpu"))


LEAKS = {
    "the one before": lambda distance: distance == 1,
    "the one after": lambda distance: distance == -1,
    "the first by the last alone": lambda distance: distance == 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "layer norm"])
@pytest.mark.parametrize("seen", LEAKS)
def test_a_leak_far_below_rounding_is_found(seen: str, normed: bool, dtype: torch.dtype) -> None:
    fault = fault_of(lambda distance: 1e-5 * LEAKS[seen](distance), dtype=dtype, normed=normed)
    assert fault == "lets documents see one another"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
def test_strangers_are_not_suspected(normed: bool, dtype: torch.dtype) -> None:
    assert fault_of(lambda distance: torch.zeros(()), dtype=dtype, normed=normed) == ""


def test_positions_that_go_on_through_the_row_are_found() -> None:
    embedding = nn.Embedding(V, 16)

    def states(batch: Batch) -> Tensor:
        return embedding(batch.input_ids)[0] + 0.1 * torch.arange(batch.input_ids.shape[1])[:, None]

    fault = find_fault(states, embedding, V, torch.device("cpu"))
    assert fault == "gives a document other states in a packed row than alone"


def failing(error: Exception) -> str:
    embedding = nn.Embedding(V, 16)

    def states(batch: Batch) -> Tensor:
        if batch.documents is not None:
            raise error
        return embedding(batch.input_ids)[0]

    return find_fault(states, embedding, V, torch.device("cpu"))


def test_what_a_model_raises_is_its_reason_but_no_device_trouble_is_hidden() -> None:
    assert failing(TypeError("unexpected keyword\nmore")) == "fails on packed rows (unexpected keyword)"
    assert failing(NotImplementedError("no backward on CPU")) == "fails on packed rows (no backward on CPU)"
    assert failing(KeyError()) == "fails on packed rows (KeyError)"
    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("out of memory"))
