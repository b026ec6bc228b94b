"""Two adapters on one backbone: which one computes, and that nothing else changes when it does."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import logits, refused, shake, tiny_model

from relax.adapters import CRITIC, DEFAULT, adapter_weights, add_adapter, using_adapter, without_adapter
from relax.causal_lm import frozen_digest
from relax.lora import LoRASettings, add_lora, enable_gradient_checkpointing, has_learned

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "head in full": {"modules_to_save": ["lm_head"]},
    "dora": {"use_dora": True},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
}
IDS = torch.arange(14).view(2, 7)


def two_adapters(kind: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    """Both trained, and different."""
    model = add_lora(tiny_model(kind).to(dtype), LoRASettings(4, **options))
    add_adapter(model, CRITIC)
    shake(model)
    return model


def some_rows_in_full() -> PeftModel:
    """An adapter that replaces rows of the embedding, too."""
    options = {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [1, 6, 11]}
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **options))
    add_adapter(model, CRITIC)
    shake(model)
    return model


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_each_adapter_computes_as_if_it_were_alone(options: dict[str, Any]) -> None:
    model = two_adapters(**options)
    alone = {}
    for name in (DEFAULT, CRITIC):
        model.set_adapter(name)  # PEFT's own way, the oracle
        alone[name] = logits(model)
    model.set_adapter(DEFAULT)
    with using_adapter(model, CRITIC):
        assert torch.equal(logits(model), alone[CRITIC])
        with using_adapter(model, DEFAULT):
            assert torch.equal(logits(model), alone[DEFAULT])
        assert torch.equal(logits(model), alone[CRITIC])
    assert torch.equal(logits(model), alone[DEFAULT])
    with without_adapter(model):
        assert torch.equal(logits(model), logits(tiny_model()))
    assert not torch.equal(alone[CRITIC], alone[DEFAULT])


def test_rows_of_an_embedding_go_with_their_adapter() -> None:
    model = some_rows_in_full()
    before = logits(model)
    with using_adapter(model, CRITIC):
        embedded = model.get_base_model().get_input_embeddings()(IDS)
    assert torch.equal(embedded, tiny_model().get_input_embeddings()(IDS))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_what_is_trained_stays_so_through_every_switch(options: dict[str, Any]) -> None:
    model = two_adapters(**options)
    adapter_weights(model, CRITIC).popitem()[1].requires_grad_(False)  # a choice that must survive
    before = trained(model)
    with using_adapter(model, CRITIC):
        assert trained(model) == before
        assert model.active_adapter == CRITIC
    with without_adapter(model):
        pass
    with pytest.raises(ZeroDivisionError), using_adapter(model, CRITIC), without_adapter(model):
        1 / 0  # noqa: B018
    assert trained(model) == before
    assert model.active_adapter == DEFAULT
    assert model.active_adapters == [DEFAULT]


def test_peft_itself_stops_training_when_it_switches() -> None:
    """Why there are switches of our own: drop them when this one starts to fail."""
    model = two_adapters()
    before = trained(model)
    with model.disable_adapter():
        pass
    assert trained(model) < before
    model.set_adapter(CRITIC)
    model.set_adapter(DEFAULT)
    assert trained(model) < before


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_second_adapter_starts_at_the_base_and_leaves_the_first_alone(options: dict[str, Any]) -> None:
    model = add_lora(tiny_model(), LoRASettings(4, alpha=7, dropout=0.25, **options))
    shake(model)
    before, names = logits(model), trained(model)
    add_adapter(model, CRITIC)
    assert torch.equal(logits(model), before)
    assert trained(model) - names <= adapter_weights(model, CRITIC).keys()
    assert names <= trained(model)
    with using_adapter(model, CRITIC):
        assert torch.equal(logits(model), logits(tiny_model()))
    first, second = model.peft_config[DEFAULT], model.peft_config[CRITIC]
    assert (second.r, second.lora_alpha, second.lora_dropout, second.use_dora) == (4, 7, 0.25, first.use_dora)
    pairs = [len([n for n in adapter_weights(model, a) if "lora_" in n]) for a in (DEFAULT, CRITIC)]
    assert pairs[0] == pairs[1]
    assert not any("modules_to_save" in name for name in adapter_weights(model, CRITIC))
    dropouts = [m for name, m in model.named_modules() if name.endswith(f"lora_dropout.{CRITIC}")]
    assert dropouts
    assert not any(module.training for module in dropouts)  # the model was in evaluation mode


def test_a_head_that_the_second_adapter_never_runs_is_not_trained() -> None:
    """Else two processes would wait for gradients that never come."""
    model = two_adapters(**KINDS["embedding and head"])
    idle = {name for name in adapter_weights(model, CRITIC) if ".lm_head." in name}
    assert len(idle) == 2
    assert adapter_weights(model, CRITIC).keys() - trained(model) == idle
    assert {name for name in adapter_weights(model, CRITIC) if "lora_embedding" in name} <= trained(model)


def test_adapters_of_a_half_precision_base_are_float32() -> None:
    model = two_adapters(dtype=torch.bfloat16)
    assert {weight.dtype for weight in adapter_weights(model, CRITIC).values()} == {torch.float32}


def test_a_second_adapter_of_the_same_name() -> None:
    with refused("critic already", 'delete_adapter("critic")'):
        add_adapter(two_adapters(), CRITIC)


def test_only_the_policys_adapter_counts_as_the_policys() -> None:
    model = add_lora(tiny_model(), LoRASettings(4))
    digest = frozen_digest(model)
    add_adapter(model, CRITIC)
    for weight in adapter_weights(model, CRITIC).values():
        weight.data.normal_()
    assert not has_learned(model)
    for weight in adapter_weights(model, CRITIC).values():
        weight.requires_grad_(False)
    assert frozen_digest(model) == digest
    shake(model)
    assert has_learned(model)


def gradients(kind: str, *, checkpointing: bool, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of a loss of both adapters, with dropout."""
    model = two_adapters(kind, torch.float64, dropout=0.2, **options).double()
    if checkpointing:
        enable_gradient_checkpointing(model)
    torch.manual_seed(5)
    policy = model.train()(input_ids=IDS, labels=IDS).loss
    with using_adapter(model, CRITIC):
        value = model(input_ids=IDS).logits.square().mean()
    (policy + 0.3 * value).backward()
    assert model.active_adapter == DEFAULT
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layers_are_recomputed_with_the_adapter_of_their_forward_pass(kind: str, options: dict[str, Any]) -> None:
    plain, recomputed = (gradients(kind, checkpointing=flag, options=options) for flag in (False, True))
    assert plain.keys() == recomputed.keys()
    assert any(f".{CRITIC}." in name for name in plain)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_copy_recomputes_with_its_own_adapters() -> None:
    model = two_adapters()
    enable_gradient_checkpointing(model)
    twin = copy.deepcopy(model)
    expected = gradients("llama", checkpointing=False, options={})
    torch.manual_seed(0)
    twin.train()
    with using_adapter(twin, CRITIC):
        loss = twin(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(weight.grad is None for weight in model.parameters())
    learned = {name for name, weight in twin.named_parameters() if weight.grad is not None}
    assert learned == {name for name in expected if f".{CRITIC}." in name}
