"""Whole optimizer steps of RLTrainer against PPO's equations, in fp64, however they are cut."""

from typing import Any

import lightning as L
import pytest
import torch
from conftest import build_llama
from grpo_run import other_policy
from ppo_equations import PPO
from ppo_oracle import CRITICS, Oracle, check_every_step, gradients, mean, norm, run, same, split
from ppo_run import STEPS, Steps, adapted, build, harsh
from torch.utils.data import DataLoader
from transformers import LlamaForSequenceClassification

from relax.tasks.sorting import Sorting

pytestmark = pytest.mark.filterwarnings("ignore:--kl_coef pulls towards the base model")


@pytest.mark.parametrize("critic", CRITICS)
def test_every_step_follows_the_equations(critic: str) -> None:
    """Two epochs of two minibatches in each of two iterations, with log-probs and values of the policy that sampled."""
    oracle = run(critic, micro_batch_size=4, temperature=0.8, max_steps=2 * STEPS)
    assert len(oracle.steps.gradients) == 2 * STEPS
    assert len(oracle.steps.experiences) == 2
    check_every_step(oracle)
    figures = oracle.steps.figures
    assert figures[0]["ratio_max"] == figures[0]["ratio_min"] == 1
    assert figures[0]["value_clip"] == 0
    assert max(step["clip_low"] for step in figures) > 0.02
    assert max(step["value_clip"] for step in figures) > 0.02
    for gradient in oracle.steps.gradients:
        assert all(norm(part) > 1e-3 for part in split(gradient, critic))


VARIANTS: dict[str, dict[str, Any]] = {
    "k2 in the reward": {"kl_estimator": "k2", "kl_coef": 0.5},
    "k3 in the reward, one step ahead": {"kl_estimator": "k3", "kl_coef": 0.2, "gae_lambda": 0.0, "gamma": 0.9},
    "k3 in the loss": {"kl_in_loss": True, "kl_coef": 0.3},
    "k2 in the loss, bonus": {"kl_in_loss": True, "kl_estimator": "k2", "kl_coef": 0.3, "entropy_coef": 0.02},
    "completions alike": {"aggregation": "sequence_mean", "kl_in_loss": True, "entropy_coef": 0.02},
    "fixed length": {"aggregation": "fixed_length_mean", "value_coef": 0.7},
    "bootstrap": {"bootstrap_truncated": True, "gae_lambda": 0.5, "gamma": 0.95, "missing_eos_penalty": 0.5},
    "plain sums, bootstrap": {"bootstrap_truncated": True, "gae_lambda": 1.0, "gamma": 0.9, "value_clip": None},
    "masked": {"mask_truncated": True, "aggregation": "sequence_mean"},
    "normalized": {"normalize_rewards": True, "reward_clip": 1.2, "missing_eos_penalty": 0.3, "max_steps": 8},
    "dual clip": {"ratio_max": 1.35, "clip_low": 0.1, "clip_high": 0.28, "learning_rate": 0.5},
    "groups, read once more": {"num_generations": 4, "top_k": 6, "num_iterations": 3, "max_steps": 6},
    "values that fall": {"rewards": [harsh], "value_clip": 0.05, "learning_rate": 0.02},
    "unwhitened, no penalty": {"whiten_advantages": False, "kl_coef": 0.0, "value_clip": 0.05},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_follows_its_equation(variant: str) -> None:
    settings = VARIANTS[variant]
    reference = other_policy() if settings.get("kl_coef", 1) else None
    oracle = run(reference=reference, micro_batch_size=6, **settings)
    check_every_step(oracle)
    truncated = oracle.steps.experiences[0].completions["truncated"]
    assert 0 < int(truncated.sum()) < len(truncated)  # so that their settings act
    if "ratio_max" in settings:
        assert max(step["ratio_max"] for step in oracle.steps.figures) > 1.35


@pytest.mark.parametrize("critic", ["shared", "adapter"])
@pytest.mark.parametrize("variant", ["k2 in the loss, bonus", "bootstrap", "masked"])
def test_variants_with_the_other_critics(critic: str, variant: str) -> None:
    check_every_step(run(critic, micro_batch_size=6, **VARIANTS[variant]))


def test_completions_of_one_token() -> None:
    oracle = run(max_new_tokens=1, bootstrap_truncated=True, micro_batch_size=6)
    assert set(oracle.steps.experiences[0].lengths.tolist()) == {1}
    check_every_step(oracle)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_other_critics_beside_an_adapter(critic: str) -> None:
    """A separate one is a copy of the base with the adapter merged."""
    oracle = run(critic, adapted(), micro_batch_size=6)
    check_every_step(oracle)
    assert any("lora_B" in name for name in oracle.steps.gradients[0])
    assert ("critic.body.norm.weight" in oracle.steps.gradients[0]) == (critic == "separate")


def test_a_reward_model_as_the_critic_to_begin_with() -> None:
    """Its head is taken too; transformers' has no bias."""
    other = build_llama(initializer_range=0.3).config
    other.num_labels = 1
    torch.manual_seed(9)
    classifier = LlamaForSequenceClassification(other)
    oracle = run(critic_model=classifier, micro_batch_size=6, value_coef=0.01)
    check_every_step(oracle)
    assert "critic.head.bias" not in oracle.steps.weights[0]
    assert float(oracle.steps.experiences[0].tokens["values"].std()) > 0.1


class Coefficients(L.Callback):
    """Sets the KL coefficient of each optimizer step."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.kl_coef = self.values[trainer.global_step]


@pytest.mark.parametrize("in_loss", [False, True])
def test_a_kl_coefficient_that_changes(in_loss: bool) -> None:
    """In the loss from the next step on, in the reward from the next iteration on; through zero and back."""
    values = [0.04, 0.5, 0.0, 0.3, 0.2, 0.0, 0.4, 0.0, 0.1, 0.1, 0.1, 0.9]
    settings = {"callbacks": [Coefficients(values)], "max_steps": 3 * STEPS, "kl_in_loss": in_loss}
    oracle = run(reference=other_policy(), micro_batch_size=6, kl_coef=0.7, **settings)
    oracle.kl_coefs = values
    check_every_step(oracle)


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer of your own")
@pytest.mark.parametrize("critic", CRITICS)
def test_a_loader_of_prompts_gives_the_same_update(critic: str) -> None:
    """Each batch of prompts is written, appraised and learned from at once."""
    steps, model = Steps(), adapted() if critic == "adapter" else None
    module = build(model, critic=critic, train_dataset=None, normalize_rewards=True)
    loader = DataLoader(Sorting().prompt_rows(24), batch_size=8, collate_fn=list)
    options: dict[str, Any] = {"precision": "64-true", "accelerator": "cpu", "logger": False, "log_every_n_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(max_epochs=1, callbacks=[steps], **options, **quiet).fit(module, loader)
    assert len(steps.experiences) == len(steps.gradients) == 3
    check_every_step(Oracle(module, steps, PPO(normalize_rewards=True), critic, whole=True))


LAYOUTS: list[dict[str, Any]] = [
    {"layout": "padded"},
    {"layout": "packed"},
    {"layout": "padded", "micro_batch_size": 6},
    {"layout": "packed", "micro_batch_size": 1},
    {"layout": "padded", "max_tokens_per_micro_batch": 60, "max_prompt_length": 10},
    {"layout": "packed", "max_tokens_per_micro_batch": 30, "max_prompt_length": 10},
    {"layout": "packed", "micro_batch_size": 4, "gradient_checkpointing": True},
]
METHODS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "masked, bootstrap, in the loss": {"mask_truncated": True, "bootstrap_truncated": True, "kl_in_loss": True},
}


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("method", METHODS)
def test_neither_gradient_nor_figures_depend_on_the_cut(critic: str, method: str) -> None:
    """Micro-batches, accumulation, padding, budgets, checkpointing."""
    first, *others = [run(critic, **METHODS[method], **layout).steps for layout in LAYOUTS]
    assert len(first.gradients) == STEPS
    for steps, layout in zip(others, LAYOUTS[1:], strict=True):
        for found, expected in zip(steps.gradients, first.gradients, strict=True):
            same(found, expected, rtol=1e-7, atol=1e-10)
        for figures, expected_figures in zip(steps.figures, first.figures, strict=True):
            for name in {name for name in expected_figures if "second" not in name}:
                assert figures[name] == pytest.approx(expected_figures[name], rel=1e-4, abs=1e-6), (name, layout)


@pytest.mark.parametrize("critic", ["separate", "adapter"])
def test_the_first_minibatch_is_the_plain_policy_gradient(critic: str) -> None:
    """-mean A grad log pi, and the critic's mean (V - R) grad V times its coefficient: nothing is clipped yet."""
    oracle = run(critic, micro_batch_size=4)
    experience = oracle.steps.experiences[0]
    leaves = {name: x.requires_grad_() for name, x in oracle.steps.weights[0].items()}
    policy_terms, value_terms = [], []
    for i in oracle.members(experience)[0]:
        rows, values = oracle.forward_both(leaves, experience.prompt(i), experience.completion(i))
        known = {name: x[experience.span(i)] for name, x in experience.tokens.items()}
        for t, token in enumerate(experience.completion(i)):
            policy_terms.append(-known["advantages"][t] * rows[t, token])
            value_terms.append((values[t].detach() - known["returns"][t]) * values[t])
    loss = mean(policy_terms) + 0.1 * mean(value_terms)
    same(oracle.steps.gradients[0], gradients(loss, leaves))
