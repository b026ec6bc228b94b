"""Whole optimizer steps of GRPOTrainer against the published equations, in fp64, however they are cut."""

from typing import Any

import lightning as L
import pytest
import torch
from grpo_oracle import Oracle, check_every_step
from grpo_run import STEPS, other_policy, policy, train
from published_objectives import LITERAL

from relax.adapters import without_adapter
from relax.lora import LoRASettings, add_lora
from relax.policy_gradient import PRESETS
from trainers import GRPOTrainer

PENALIZED = [name for name, preset in PRESETS.items() if preset.objective.kl_coef]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_follows_the_published_equation(preset: str) -> None:
    reference = other_policy() if preset in PENALIZED else None
    steps, trainer = train(preset=preset, reference=reference, micro_batch_size=4, temperature=0.8)
    oracle = Oracle(trainer, steps, preset, policy, reference or policy().double())
    check_every_step(oracle)
    assert preset in LITERAL
    assert steps.figures[0]["ratio_max"] == steps.figures[0]["ratio_min"] == 1
    assert max(figures["ratio_max"] for figures in steps.figures) > 1.05  # off policy: the ratios count
    if preset != "cispo":
        assert max(figures["clip_low"] for figures in steps.figures) > 0.02


LAYOUTS: list[dict[str, Any]] = [
    {"layout": "padded"},
    {"layout": "packed"},
    {"layout": "padded", "micro_batch_size": 4},
    {"layout": "packed", "micro_batch_size": 1},
    {"layout": "padded", "max_tokens_per_micro_batch": 60, "max_prompt_length": 10},
    {"layout": "packed", "max_tokens_per_micro_batch": 30, "max_prompt_length": 10},
    {"layout": "packed", "micro_batch_size": 8, "gradient_checkpointing": True},
]
EXTRAS = {"entropy_coef": 0.02, "top_entropy_share": 0.5, "kl_coef": 0.1, "kl_estimator": "k2"}
METHODS: dict[str, dict[str, Any]] = {
    "dapo": {"preset": "dapo"},
    "gspo, masked": {"preset": "gspo", "mask_truncated": True},
    "dr_grpo, penalty, bonus and mask": {"preset": "dr_grpo", **EXTRAS},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_does_not_depend_on_the_cut(method: str) -> None:
    """Micro-batches, accumulation, padding, budgets, checkpointing; nor do the figures."""
    reference = other_policy() if "kl_coef" in METHODS[method] else None
    runs = [train(reference=reference, **METHODS[method], **layout)[0] for layout in LAYOUTS]
    for run, layout in zip(runs, LAYOUTS, strict=True):
        assert len(run.gradients) == STEPS
        for found, expected in zip(run.gradients, runs[0].gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11, msg=lambda m, at=layout: f"{at}: {m}")
        for figures, others in zip(run.figures, runs[0].figures, strict=True):
            for name in {name for name in others if "second" not in name}:
                assert figures[name] == pytest.approx(others[name], rel=1e-4, abs=1e-6), (name, layout)


@pytest.mark.parametrize("preset", ["dapo", "grpo", "gspo"])
def test_the_shortcut_on_fresh_experience_is_exact(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights known in advance, against the loss of log-probs that are computed anew."""
    reference = other_policy() if preset in PENALIZED else None
    short, _ = train(preset=preset, reference=reference, micro_batch_size=4)
    monkeypatch.setattr("trainers.on_policy.has_dropout", lambda model: True)
    general, _ = train(preset=preset, reference=reference, micro_batch_size=4)
    for found, expected in zip(short.gradients, general.gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert general.figures[0]["ratio_max"] == pytest.approx(1, abs=1e-9)  # a training forward gives what sampling gave
    assert general.figures[0]["ratio_min"] == pytest.approx(1, abs=1e-9)
    assert short.figures[0]["loss"] == pytest.approx(general.figures[0]["loss"], rel=1e-6)


def test_completions_without_a_gradient_are_not_computed_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out, trainer = train(micro_batch_size=4)
    idle = trainer.idle(left_out.experiences[0])
    assert 0 < int(idle.sum()) < len(idle)
    monkeypatch.setattr(GRPOTrainer, "idle", lambda self, experience: torch.zeros(len(experience), dtype=torch.bool))
    computed, _ = train(micro_batch_size=4)
    for found, expected in zip(left_out.gradients, computed.gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for figures, others in zip(left_out.figures, computed.figures, strict=True):
        assert figures["loss"] == pytest.approx(others["loss"], rel=1e-6)
        assert figures["policy_loss"] == pytest.approx(others["policy_loss"], rel=1e-6)


@pytest.mark.parametrize("preset", ["dapo", "gspo", "dr_grpo"])
def test_masked_completions_are_in_no_denominator(preset: str) -> None:
    steps, trainer = train(preset=preset, mask_truncated=True, micro_batch_size=4)
    truncated = steps.experiences[0].completions["truncated"]
    assert 0 < int(truncated.sum()) < len(truncated)
    check_every_step(Oracle(trainer, steps, preset, policy))


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_tokens_of_high_entropy(mask_truncated: bool) -> None:
    """Of those the policy sampled in the iteration and learns from; denominators stay those of all."""
    steps, trainer = train(top_entropy_share=0.3, mask_truncated=mask_truncated, micro_batch_size=4)
    check_every_step(Oracle(trainer, steps, "dapo", policy, top_entropy_share=0.3))
    experience = steps.experiences[0]
    trained = trainer.trained(experience).repeat_interleave(experience.lengths)
    assert float(experience.tokens["selected"][trained].double().mean()) == pytest.approx(0.3, abs=0.02)


def test_an_entropy_bonus() -> None:
    steps, trainer = train(entropy_coef=0.05, micro_batch_size=4)
    check_every_step(Oracle(trainer, steps, "dapo", policy, entropy_coef=0.05))


def adapted() -> Any:
    model: Any = add_lora(policy(), LoRASettings(r=2))
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight) * 0.2)
    return model


@pytest.mark.parametrize("preset", ["dapo", "grpo", "rloo"])
def test_an_adapter_and_the_base_as_its_reference(preset: str) -> None:
    steps, trainer = train(adapted(), preset=preset, micro_batch_size=4, learning_rate=0.5)
    assert trainer.reference is None
    oracle = Oracle(trainer, steps, preset, adapted, as_reference=without_adapter)
    check_every_step(oracle)
    if preset in PENALIZED:
        assert steps.figures[0]["kl"] != 0


def test_the_reference_is_a_copy_of_the_policy_as_it_came() -> None:
    steps, trainer = train(preset="grpo", micro_batch_size=8, max_steps=STEPS + 1)
    check_every_step(Oracle(trainer, steps, "grpo", policy, policy().double().eval()), STEPS + 1)
    assert trainer.reference is not None
    assert not any(p.requires_grad for p in trainer.reference.parameters())
    assert len(list(trainer.parameters())) == len(list(trainer.model.parameters()))


class Coefficients(L.Callback):
    """Sets the KL coefficient of each optimizer step."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.kl_coef = self.values[trainer.global_step]


def test_the_kl_coefficient_acts_from_the_next_step_on() -> None:
    """Through zero and back, within an iteration and over its end."""
    values, reference = [0.04, 0.5, 0.2, 0.0, 0.0, 0.3, 0.0, 0.1], other_policy()
    steps, trainer = train(
        preset="grpo", reference=reference, callbacks=[Coefficients(values)], max_steps=8, micro_batch_size=8
    )
    check_every_step(Oracle(trainer, steps, "grpo", policy, reference, kl_coefs=values), 8)
