"""Which updates RLTrainer makes of its gradients, with which rates and limits, and what it reports of an iteration."""

import statistics
from typing import Any

import pytest
import torch
from grpo_run import other_policy
from ppo_equations import PPO, StepLoss, advantages
from ppo_oracle import CRITICS, Oracle, gradients, mean, norm, run, same, split
from ppo_run import STEPS
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:--kl_coef pulls towards the base model")


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
    targets = (0.99 * max(free) / 1.5, 0.99 * free[1] / 1.5, 100.0)
    for target in targets:
        steps_made = next((number for number, kl in enumerate(free) if kl > 1.5 * target), STEPS)
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
