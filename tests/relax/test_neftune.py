"""Noise on the input embeddings: its size, where it goes, and that nothing is left behind."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import refused, tiny_model
from torch import Tensor

from relax import causal_lm
from relax.data.batching.batches import Batch, collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample
from relax.neftune import noisy_embeddings

LENGTHS = (40, 9, 2)
ALPHA = 5.0
COLLATES = [collate_padded, collate_packed]


def make_batch(collate: Callable) -> Batch:
    return collate([Sample.of([i + 3] * n, [True] * n) for i, n in enumerate(LENGTHS)])


def embeddings(model: Any, batch: Batch) -> Tensor:
    return causal_lm.base_model(model).get_input_embeddings()(batch.input_ids).detach()


@pytest.mark.parametrize("collate", COLLATES)
def test_noise_is_uniform_and_as_large_as_the_length_of_each_sequence_says(collate: Callable) -> None:
    torch.manual_seed(0)
    model, batch = tiny_model(hidden_size=64), make_batch(collate)
    clean = embeddings(model, batch)
    with noisy_embeddings(model, ALPHA, batch):
        noise = torch.stack([embeddings(model, batch) - clean for _ in range(20)])
    for i, length in enumerate(LENGTHS):
        own = noise[:, batch.input_ids == i + 3]
        bound = ALPHA / math.sqrt(length * 64)
        assert own.abs().max() <= bound * (1 + 1e-4)
        assert own.abs().max() > 0.95 * bound
        assert own.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # that of a uniform distribution
        assert own.mean().item() == pytest.approx(0, abs=0.05 * bound)
    assert not noise[:, batch.input_ids == 0].any()  # padding


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_the_model_computes_on_the_noise_and_afterwards_as_before(kind: str) -> None:
    model, batch = tiny_model(kind), make_batch(collate_padded)
    clean = causal_lm.hidden_states(model, batch)
    with noisy_embeddings(model, ALPHA, batch):
        noisy = causal_lm.hidden_states(model, batch)
    assert not torch.allclose(noisy, clean, atol=1e-3)
    assert torch.equal(causal_lm.hidden_states(model, batch), clean)


def test_nothing_is_left_behind_by_a_pass_that_fails() -> None:
    model, batch = tiny_model(), make_batch(collate_padded)
    clean = causal_lm.hidden_states(model, batch)
    with pytest.raises(ZeroDivisionError), noisy_embeddings(model, ALPHA, batch):
        raise ZeroDivisionError
    assert torch.equal(causal_lm.hidden_states(model, batch), clean)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"]])
def test_under_lora(targets: list[str]) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))
    batch = make_batch(collate_padded)
    clean = embeddings(model, batch)
    with noisy_embeddings(model, ALPHA, batch):
        found = causal_lm.hidden_states(model, batch)
        noise = (embeddings(model, batch) - clean)[batch.input_ids == 3]
    assert 0 < noise.abs().max() <= ALPHA / math.sqrt(40 * 16) * (1 + 1e-4)
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_same_generator_gives_the_same_noise_and_so_the_same_gradient() -> None:
    model, batch = tiny_model(), make_batch(collate_padded)
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        model.zero_grad()
        with noisy_embeddings(model, ALPHA, batch):
            causal_lm.hidden_states(model, batch).square().sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_half_precision_stays_half() -> None:
    model, batch = tiny_model().bfloat16(), make_batch(collate_padded)
    with noisy_embeddings(model, ALPHA, batch):
        assert embeddings(model, batch).dtype == torch.bfloat16


def test_a_model_that_goes_past_its_embeddings_is_refused() -> None:
    model, batch = tiny_model(), make_batch(collate_padded)
    with refused("--neftune_alpha", "LlamaForCausalLM"), noisy_embeddings(model, ALPHA, batch):
        model(inputs_embeds=torch.zeros(1, 3, 16))
