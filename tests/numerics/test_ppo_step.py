"""Whole optimizer steps of RLTrainer against PPO's equations, in fp64, however they are cut."""

import statistics
from typing import Any

import pytest
import torch
from grpo_run import other_policy
from ppo_equations import PPO, StepLoss, advantages
from ppo_oracle import Oracle, Weights, check_every_step, gradients, same
from ppo_run import STEPS, adapted, train
from torch import Tensor

CRITICS = ["separate", "shared", "adapter"]
pytestmark = pytest.mark.filterwarnings("ignore:--kl_coef pulls towards the base model")


def run(critic: str = "separate", reference: Any = None, **settings: Any) -> Oracle:
    """A run and its oracle; ``settings`` of PPO go to both."""
    ppo = PPO(**{name: value for name, value in settings.items() if name in PPO.__dataclass_fields__})
    model = adapted() if critic == "adapter" else None
    steps, trainer = train(model, critic=critic, reference=reference, **settings)
    return Oracle(trainer, steps, ppo, critic, reference)


def is_critics(name: str, critic: str) -> bool:
    """Whether a weight is the value function's alone."""
    return name.startswith("critic.") or (critic == "adapter" and ".critic." in name)


def split(weights: Weights, critic: str) -> tuple[Weights, Weights]:
    """The policy's and the critic's."""
    own = {name: x for name, x in weights.items() if is_critics(name, critic)}
    return {name: x for name, x in weights.items() if name not in own}, own


def norm(weights: Weights) -> float:
    return float(torch.cat([x.flatten() for x in weights.values()]).norm())


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


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() / len(terms)


# Which updates are made


@pytest.mark.parametrize("critic", CRITICS)
def test_in_the_warm_up_only_the_critic_learns(critic: str) -> None:
    """Of a shared one the head. Momentum and weight decay do not move the policy either."""
    warm_up = STEPS + 1
    settings = {"critic_warmup_steps": warm_up, "max_steps": STEPS + 3, "optimizer": "adamw", "weight_decay": 0.1}
    oracle = run(critic, micro_batch_size=4, **settings | {"learning_rate": 0.01})
    weights = oracle.steps.weights
    for number, ((parts, leaves), found) in enumerate(zip(oracle.losses(), oracle.steps.gradients, strict=True)):
        warm = number < warm_up
        expected = gradients(loss_of(parts, oracle.ppo, warm), leaves)
        policy, _ = split(expected, critic)
        expected |= {name: torch.zeros_like(x) for name, x in policy.items()} if warm else {}
        same(found, expected)
        if number + 1 < len(weights):
            before, after = (split(w, critic) for w in weights[number : number + 2])
            assert all(torch.equal(before[0][name], after[0][name]) for name in before[0]) == warm
            assert not any(torch.equal(before[1][name], after[1][name]) for name in before[1] if "lora_A" not in name)


def loss_of(parts: StepLoss, ppo: PPO, warm: bool) -> Tensor:
    return ppo.value_coef * parts.value if warm else parts.total(ppo)


@pytest.mark.parametrize("critic", CRITICS)
def test_policy_and_critic_have_their_own_rates_and_are_clipped_apart(critic: str) -> None:
    rates = (0.2, 0.7)
    oracle = run(
        critic, micro_batch_size=4, learning_rate=rates[0], critic_learning_rate=rates[1], gradient_clip_val=0.05
    )
    steps = oracle.steps
    for number in range(STEPS - 1):
        before, after, gradient = (
            split(x, critic) for x in (steps.weights[number], steps.weights[number + 1], steps.gradients[number])
        )
        for part, (rate, name) in enumerate(zip(rates, ("grad_norm", "critic_grad_norm"), strict=True)):
            length = norm(gradient[part])
            assert steps.figures[number][name] == pytest.approx(length, rel=1e-5)
            shorter = min(1, 0.05 / (length + 1e-6))
            expected = {n: before[part][n] - rate * shorter * g for n, g in gradient[part].items()}
            same(after[part], expected, rtol=1e-7, atol=1e-9)
        assert steps.figures[number]["learning_rate"] == pytest.approx(rates[0])
        assert steps.figures[number]["critic_learning_rate"] == pytest.approx(rates[1])


def old_kl(oracle: Oracle, iteration: int) -> list[float]:
    """The mean of k3 of pi_old and pi over the tokens of each optimizer step of an iteration."""
    experience, found = oracle.steps.experiences[iteration], []
    for number, members in enumerate(oracle.members(experience), iteration * STEPS):
        terms = []
        for i in members:
            ids = experience.completion(i)
            rows, _ = oracle.forward_both(oracle.steps.weights[number], experience.prompt(i), ids)
            moved = rows[torch.arange(len(ids)), torch.tensor(ids)] - experience.tokens["logprobs"][experience.span(i)]
            terms += [x.exp() - x - 1 for x in moved]
        found.append(float(mean(terms)))
    return found


@pytest.mark.parametrize("critic", CRITICS)
def test_an_iteration_ends_before_the_step_that_is_too_far_off(critic: str) -> None:
    """1.5 times the target, measured before the step; the next iteration learns again."""
    settings = {"micro_batch_size": 4, "max_steps": 2 * STEPS, "weight_decay": 0.1}
    free = old_kl(run(critic, **settings), 0)
    assert free[0] == pytest.approx(0, abs=1e-12)
    assert free[1] < free[2]
    for target, steps_made in [(0.99 * free[2] / 1.5, 2), (0.99 * free[1] / 1.5, 1), (100.0, 4)]:
        oracle = run(critic, target_kl=target, **settings)
        weights = oracle.steps.weights
        for number in range(STEPS):
            moved = not all(torch.equal(x, weights[number + 1][name]) for name, x in weights[number].items())
            assert moved == (number < steps_made), (target, number)
            figures = oracle.steps.figures[number]
            assert figures["epochs_done"] == pytest.approx(min(number + 1, steps_made) / 2)
        assert norm(oracle.steps.gradients[STEPS]) > 1e-3
        assert oracle.steps.figures[STEPS]["epochs_done"] == 0.5


# What is reported


@pytest.mark.parametrize("settings", [{}, {"bootstrap_truncated": True, "gamma": 0.9, "mask_truncated": True}])
def test_figures_of_the_estimate(settings: dict[str, Any]) -> None:
    oracle = run(reference=other_policy(), normalize_rewards=True, kl_coef=0.2, max_steps=STEPS + 1, **settings)
    ppo = oracle.ppo
    for iteration in (0, 1):
        answers = [a for a in oracle.answers(iteration) if not (ppo.mask_truncated and a.truncated)]
        values, returns = ([x for a in answers for x in getattr(a, name)] for name in ("values", "returns"))
        raw, plain = [x for a in answers for x in a.raw_advantages], []
        for a in answers:
            rewards = [*a.kl_rewards[:-1], a.kl_rewards[-1] + a.shaped]
            after = a.after if a.truncated and ppo.bootstrap_truncated else 0.0
            plain += [x + v for x, v in zip(advantages(rewards, a.values, after, ppo.gamma, 1), a.values, strict=True)]
        shaped = statistics.fmean(a.shaped for a in answers)
        penalty = statistics.fmean(sum(a.kl_rewards) for a in answers)
        expected = {
            "value": statistics.fmean(values),
            "return": statistics.fmean(returns),
            "advantage_mean": statistics.fmean(raw),
            "advantage_std": statistics.stdev(raw),
            "explained_variance": explained(returns, values),
            "explained_variance_mc": explained(plain, values),
            "kl_reward": penalty,
            "objective_without_kl": shaped,
            "objective_with_kl": shaped + penalty,
        }
        figures = oracle.steps.figures[iteration * STEPS]
        assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def explained(targets: list[float], values: list[float]) -> float:
    residuals = [r - v for r, v in zip(targets, values, strict=True)]
    return 1 - statistics.pvariance(residuals) / statistics.pvariance(targets)
