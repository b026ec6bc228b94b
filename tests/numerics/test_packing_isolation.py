"""Packed rows give the loss and every gradient of the same rows one at a time, to fp64 rounding, on each backend.

The oracle is the model's own forward, eager attention, one row after another, with the logits that it computes.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as T
from reference_attention import InDouble, backends, use  # noqa: F401  backends is a fixture
from torch import Tensor

from relax import causal_lm
from relax.data.batching.batches import Batch, collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample
from relax.lora import enable_gradient_checkpointing

V = 101
BASE: dict[str, Any] = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
WINDOW = {"sliding_window": 6}
MIXED = {"head_dim": 8, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1}
NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
MOE = {"num_experts_per_tok": 2, "experts_implementation": "eager"}  # the grouped kernel knows no fp64
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaConfig(**BASE),
    "qwen3": lambda: T.Qwen3Config(**BASE, head_dim=8),
    "mistral": lambda: T.MistralConfig(**BASE, **WINDOW),
    "gemma2": lambda: T.Gemma2Config(**BASE, **MIXED, query_pre_attn_scalar=8, attn_logit_softcapping=2.0),
    "gemma3": lambda: T.Gemma3TextConfig(**BASE, **MIXED, query_pre_attn_scalar=8),
    "gpt2": lambda: T.GPT2Config(**GPT2, **NO_DROPOUT, eos_token_id=2),
    "phi3": lambda: T.Phi3Config(**BASE, **WINDOW),
    "mixtral": lambda: T.MixtralConfig(**BASE, **MOE, **WINDOW, num_local_experts=4),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(**BASE, **MOE, head_dim=8, num_experts=4, moe_intermediate_size=16),
    "olmoe": lambda: T.OlmoeConfig(**BASE, **MOE, num_experts=4),
}
ROUTED = ("mixtral", "qwen3_moe", "olmoe")
BACKENDS = ["sdpa", "eager", "flex_attention", "flash_attention_2"]
CASES = [(name, backend) for name in CONFIGS for backend in BACKENDS if (name, backend) != ("gemma2", "sdpa")]
LENGTHS = (17, 9, 9, 3, 30, 8, 1)


def build(name: str) -> Any:
    """Weights large enough for attention to be far from a mean, and all of it in fp64."""
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").double().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, V, (n,), generator=generator).tolist() for n in LENGTHS]
    return [Sample.of(row, [t % 3 != 0 for t in range(len(row))]) for row in ids]


def loss_of_batch(model: Any, batch: Batch, *, routed: bool) -> Tensor:
    output = causal_lm.forward(model, batch, router_logits=routed)
    logits = causal_lm.language_head(model)(output.hidden)
    return F.cross_entropy(logits, batch.targets, reduction="sum") + router_term(output.router_logits or ())


def loss_row_by_row(model: Any, *, routed: bool) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    options = {"output_router_logits": True} if routed else {}
    for sample in samples():
        ids = torch.tensor(sample.input_ids).long()
        output = model(ids[None], use_cache=False, **options)
        losses = F.cross_entropy(output.logits[0, :-1], ids[1:], reduction="none")
        total = total + losses[torch.tensor(sample.loss_mask)[1:]].sum()
        total = total + router_term(output.router_logits if routed else ())
    return total


def router_term(router_logits: Any) -> Tensor:
    """The z-loss of the routers: a sum over tokens, so that padding would show."""
    return sum((layer.logsumexp(-1).square().sum() for layer in router_logits), torch.zeros(()))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-13) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name] - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_packed_loss_and_gradients_are_those_of_one_row_at_a_time(name: str, backend: str) -> None:
    model, routed = build(name), name in ROUTED
    with InDouble():
        expected = loss_row_by_row(model, routed=routed)
        expected_gradients = gradients(model, expected)
        use(model, backend)
        assert causal_lm.isolate_documents(model)
        loss = loss_of_batch(model, collate_packed(samples()), routed=routed)
        found = gradients(model, loss)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    assert_same(found, expected_gradients)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("gemma2", *ROUTED)])
def test_padded_loss_and_gradients_are_those_of_one_row_at_a_time(name: str) -> None:
    model = build(name)
    with InDouble():
        expected = gradients(model, loss_row_by_row(model, routed=False))
        model.set_attn_implementation("sdpa")
        found = gradients(model, loss_of_batch(model, collate_padded(samples()), routed=False))
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "mixtral"])
def test_gradient_checkpointing_recomputes_packed_rows_alike(name: str) -> None:
    model, routed = build(name), name in ROUTED
    model.set_attn_implementation("sdpa")
    assert causal_lm.isolate_documents(model)
    expected = gradients(model, loss_of_batch(model, collate_packed(samples()), routed=routed))
    enable_gradient_checkpointing(model)
    assert any(vars(module).get("gradient_checkpointing") for module in model.modules())
    found = gradients(model, loss_of_batch(model, collate_packed(samples()), routed=routed))
    assert_same(found, expected, tolerance=0.0)


def test_they_stay_so_for_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("qwen3"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with InDouble():
        expected = gradients(model, loss_row_by_row(model, routed=False))
        causal_lm.base_model(model).set_attn_implementation("sdpa")
        assert causal_lm.isolate_documents(model)
        found = gradients(model, loss_of_batch(model, collate_packed(samples()), routed=False))
    assert found
    assert all("lora" in name for name in found)
    assert_same(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_documents_that_see_one_another_are_not_what_one_row_at_a_time_gives(name: str) -> None:
    """The proofs above could fail."""
    model = build(name)
    batch = replace(collate_packed(samples()), documents=None)
    with InDouble():
        expected = gradients(model, loss_row_by_row(model, routed=False))
        found = gradients(model, loss_of_batch(model, batch, routed=False))
    with pytest.raises(AssertionError):
        assert_same(found, expected, tolerance=0.05)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3", "phi3", "mixtral"])
def test_the_windows_are_shorter_than_the_documents(name: str) -> None:
    model, config = build(name), CONFIGS[name]()
    config.sliding_window = 1000
    wide = T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().train()
    wide.load_state_dict(model.state_dict())
    narrow, wide = (gradients(m, loss_row_by_row(m, routed=False)) for m in (model, wide))
    with pytest.raises(AssertionError):
        assert_same(narrow, wide, tolerance=0.05)


# Backend -> dtype, and how far its gradients may lie from those in fp64; documents that leak are 0.2 and more away.
GPU_BACKENDS = {
    "sdpa": (torch.float64, 1e-5),
    "flex_attention": (torch.float32, 0.02),
    "flash_attention_2": (torch.bfloat16, 0.1),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "qwen3"])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_the_kernels_of_a_gpu_keep_documents_apart(name: str, backend: str) -> None:
    if backend == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    model, (dtype, tolerance) = build(name), GPU_BACKENDS[backend]
    expected = gradients(model, loss_row_by_row(model, routed=False))
    model = model.to("cuda", dtype)
    model.set_attn_implementation(backend)
    assert causal_lm.isolate_documents(model).reason == ""
    found = gradients(model, loss_of_batch(model, collate_packed(samples()).to("cuda"), routed=False))
    assert_same({name: gradient.cpu().double() for name, gradient in found.items()}, expected, tolerance)
