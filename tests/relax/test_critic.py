"""The value function of PPO: which states it reads, what it starts as, what is trained of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import build_llama
from test_experience import builder, experience
from tiny_models import refused, shake, tiny_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from relax import causal_lm
from relax.adapters import CRITIC, adapter_weights
from relax.critic import AdapterCritic, Critic, SeparateCritic, SharedCritic, build_critic
from relax.data.batching.layout import Layout
from relax.experience.recompute import token_values
from relax.lora import LoRASettings, add_lora, enable_gradient_checkpointing
from relax.sequence_classifier import classifier_of

WHOLE = experience()


def critic_of(kind: str, policy: nn.Module | None = None) -> Critic:
    """With a head that says something."""
    if policy is None:
        policy = build_llama().double()
        if kind == "adapter":
            policy = add_lora(policy, LoRASettings(4)).double()
    critic = build_critic(kind, policy).double()
    if kind == "adapter":
        policy.double()
    torch.manual_seed(1)
    for parameter in critic.learned():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return critic


def values_by_transformers(critic: Critic, prompt: list[int], completion: list[int]) -> Tensor:
    """The head on the last hidden states of transformers' own forward: before each token, and behind the last."""
    ids = torch.tensor([[*prompt, *completion]])
    match critic:
        case SeparateCritic():
            hidden = critic.body(input_ids=ids).last_hidden_state[0]
        case AdapterCritic():
            critic.policy.set_adapter(CRITIC)
            hidden = critic.policy(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            critic.policy.set_adapter("default")
        case _:
            hidden = critic.policy(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return critic.head(hidden).squeeze(-1)[len(prompt) - 1 :]


@pytest.mark.parametrize("kind", ["separate", "adapter", "shared"])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_values_are_those_before_each_token_and_behind_the_last(kind: str, packed: bool) -> None:
    critic = critic_of(kind)
    if packed:
        causal_lm.isolate_documents(critic.policy)
        critic.prepare(packed=True)
    layout = Layout.of(12, 1, 5 if packed else 4, None) if not packed else Layout(12, None, 3, 1, max_tokens=64)
    chosen = range(1, 11)
    before, after = token_values(critic, WHOLE, chosen, builder=builder(layout, packed), device=torch.device("cpu"))
    at = 0
    for i in chosen:
        expected = values_by_transformers(critic, WHOLE.prompt(i), WHOLE.completion(i))
        span = slice(at, at + len(expected) - 1)
        torch.testing.assert_close(before[span], expected[:-1], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(after[span], expected[-1:].expand(len(expected) - 1), rtol=1e-10, atol=1e-12)
        at = span.stop
    assert at == len(before)


@pytest.mark.parametrize("kind", ["separate", "adapter", "shared"])
def test_it_begins_with_0_and_learns_beside_the_policy(kind: str) -> None:
    policy = build_llama()
    if kind == "adapter":
        policy = add_lora(policy, LoRASettings(4))
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    critic = build_critic(kind, policy)
    before, _ = token_values(
        critic, WHOLE, range(12), builder=builder(Layout.of(12, 1, 12, None), False), device=torch.device("cpu")
    )
    assert not before.any()
    learned = {id(p) for p in critic.learned()}
    assert not learned & trained
    if kind == "shared":
        assert sum(p.numel() for p in critic.learned()) == 17
    if kind == "adapter":
        assert learned == {id(p) for p in critic.head.parameters()} | {
            id(p) for p in adapter_weights(policy, CRITIC).values()
        }
        assert {id(p) for p in policy.parameters() if p.requires_grad} == trained | (
            learned - {id(p) for p in critic.head.parameters()}
        )


def test_a_separate_one_is_a_copy_without_the_language_model_head() -> None:
    policy = build_llama(tie_word_embeddings=False)
    critic = build_critic(None, policy)
    assert isinstance(critic, SeparateCritic)
    body = causal_lm.body(policy)
    assert sum(p.numel() for p in critic.body.parameters()) == sum(p.numel() for p in body.parameters())
    assert not {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in policy.parameters()}
    shake(policy)
    assert not torch.equal(next(critic.body.parameters()), next(body.parameters()))


def test_under_lora_the_default_is_an_adapter_and_a_copy_holds_what_the_adapter_learned() -> None:
    policy = add_lora(build_llama().double(), LoRASettings(4)).double()
    shake(policy)
    ids = torch.tensor([[3, 4, 5]])
    copied = build_critic("separate", policy)
    assert isinstance(copied, SeparateCritic)
    assert not any("lora" in name for name, _ in copied.named_parameters())
    expected = policy(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(copied.body(input_ids=ids).last_hidden_state, expected, rtol=1e-6, atol=1e-6)
    assert all(p.requires_grad for p in copied.body.parameters())
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in policy.parameters()}
    assert isinstance(build_critic(None, policy), AdapterCritic)


def test_the_first_weights_of_an_adapter_depend_on_the_seed_alone() -> None:
    def drawn(seed: int, before: int) -> Tensor:
        policy = add_lora(build_llama(), LoRASettings(4))
        torch.rand(before)
        following = torch.random.get_rng_state()
        build_critic("adapter", policy, seed=seed)
        assert torch.equal(torch.random.get_rng_state()[:8], following[:8])
        return torch.cat([w.flatten() for name, w in adapter_weights(policy, CRITIC).items() if "lora_A" in name])

    assert torch.equal(drawn(1, 0), drawn(1, 5))
    assert not torch.equal(drawn(1, 0), drawn(2, 0))


def test_a_reward_model_is_a_critic_that_knows_something(make_llama: Callable[..., Any]) -> None:
    policy = make_llama()
    classifier = classifier_of(policy, seed=3)
    weight = classifier.score.weight.detach().clone()
    critic = build_critic("separate", policy, classifier)
    assert torch.equal(critic.head.weight, weight)
    assert {"body.embed_tokens.weight", "head.weight"} <= dict(critic.named_parameters()).keys()


@pytest.mark.parametrize("make", [lambda: tiny_model("gpt2"), lambda: tiny_model("qwen3"), lambda: tiny_model()])
def test_architectures(make: Callable[[], PreTrainedModel]) -> None:
    policy = make()
    for kind in ("separate", "shared"):
        critic = build_critic(kind, policy)
        nn.init.ones_(critic.head.weight)
        values = token_values(
            critic, WHOLE, range(12), builder=builder(Layout.of(12, 1, 3, None), False), device=torch.device("cpu")
        )[0]
        assert values.isfinite().all()
        assert values.any() or isinstance(policy, GPT2LMHeadModel)  # a layer norm without bias sums to 0


def test_values_are_in_full_precision_under_autocast() -> None:
    critic = critic_of("shared", build_llama())
    critic.float()
    batch_of = builder(Layout.of(12, 1, 12, None), False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = token_values(critic, WHOLE, range(12), builder=batch_of, device=torch.device("cpu"))[0]
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_gradients_of_policy_and_critic_adapters_do_not_depend_on_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = add_lora(build_llama().double(), LoRASettings(4)).double()
        shake(policy)
        critic = critic_of("adapter", policy)
        if checkpointing:
            enable_gradient_checkpointing(policy)
        policy.train()
        ids = torch.tensor([[3, 4, 5, 6]])
        logits = policy(input_ids=ids).logits
        with_critic = values_with_gradient(critic, ids)
        (logits.log_softmax(-1)[0, :, 2].sum() + with_critic.square().sum()).backward()
        gradients.append([p.grad.clone() for p in (*critic.learned(), *policy.parameters()) if p.grad is not None])
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def values_with_gradient(critic: Critic, ids: Tensor) -> Tensor:
    from relax.data.batching.batches import collate_padded
    from relax.data.tokens.tokenized import Sample

    sample = Sample.of(ids[0].tolist(), [True] * ids.shape[1])
    return critic(collate_padded([sample]))


def test_what_does_not_go_together_is_refused() -> None:
    policy = build_llama()
    with refused("--critic=adapter", "--lora_r"):
        build_critic("adapter", policy)
    with refused("--critic_model", "--critic=shared"):
        build_critic("shared", policy, build_llama())
    with refused("--critic_model", "13", "14"):
        build_critic("separate", policy, build_llama(vocab_size=13))
    with refused("itself"):
        build_critic("separate", policy, policy)
    classifier = classifier_of(build_llama())
    classifier.config.num_labels = 3
    with refused("one output", "3"):
        build_critic("separate", policy, classifier)


def test_shared_states_are_used_where_they_are_known() -> None:
    critic = critic_of("shared")
    assert isinstance(critic, SharedCritic)
    states = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(critic(None, states), critic.head(states).squeeze(-1))
