"""The literal PPO of ``ppo_equations`` against closed forms, and the library's parts, put together, against it."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from ppo_equations import PPO, Answer, Now, advantages, appraise, shaped_scores, step_loss, surrogate, value_error
from torch import Tensor

from relax.policy_gradient import (
    KL_ESTIMATORS,
    ClipRange,
    Moments,
    Objective,
    PolicyTokens,
    Segments,
    StepTotals,
    generalized_advantages,
    policy_loss,
    token_mean,
    token_rewards,
    value_loss,
    whitened,
)

LENGTHS = [4, 1, 12, 3]


def scalar(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


# The literal one


def test_advantages_of_a_terminal_and_of_a_truncated_episode() -> None:
    """gamma = 1/2, lambda = 1/4: A_t = d_t + A_{t+1} / 8."""
    d = [Fraction(0), Fraction(-3), Fraction(2)]
    expected = [float(d[0] + d[1] / 8 + d[2] / 64), float(d[1] + d[2] / 8), float(d[2])]
    assert advantages([0, 0, 4], [2, 4, 2], 0, 0.5, 0.25) == expected
    assert advantages([1, 2], [6, 4], 8, 0.5, 0.25) == [-3 + 2 / 8, 2]
    assert advantages([2, 0, 4], [1, 7, 9], 16, 0.5, 1) == [2 + 1 + 2 - 1, 2 + 4 - 7, 4 + 8 - 9]
    assert advantages([2, 0, 4], [1, 7, 9], 16, 0.5, 0) == [2 + 3.5 - 1, 4.5 - 7, 4 + 8 - 9]


def test_scores_are_normalized_then_clipped_then_penalized() -> None:
    scores, truncated = [1.0, 3.0, 8.0], [True, False, True]
    assert shaped_scores(PPO(), scores, truncated) == scores
    assert shaped_scores(PPO(missing_eos_penalty=1.5), scores, truncated) == [-0.5, 3.0, 6.5]
    assert shaped_scores(PPO(reward_clip=2, missing_eos_penalty=1.5), scores, truncated) == [-0.5, 2.0, 0.5]
    found = shaped_scores(PPO(normalize_rewards=True, reward_clip=0.5), scores, truncated, earlier=[4.0, 4.0])
    std = math.sqrt((9 + 1 + 16 + 0 + 0) / 4)
    assert found == pytest.approx([max(-3 / std, -0.5), -1 / std, 0.5])
    assert shaped_scores(PPO(normalize_rewards=True), [7.0], [False]) == [0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        *[(1.1, 1, -1.1, -1), (1.3, 1, -1.2, 0), (0.7, 1, -0.7, -1)],
        *[(0.9, -1, 0.9, 1), (0.7, -1, 0.8, 0), (1.3, -1, 1.3, 1), (3.5, -1, 3, 0), (3.5, 1, -1.2, 0)],
    ],
)
def test_the_surrogate_and_its_bounds(ratio: float, advantage: float, loss: float, slope: float) -> None:
    r = scalar(ratio)
    found = surrogate(PPO(ratio_max=3.0), r, advantage)
    assert found.item() == pytest.approx(loss, rel=1e-15)
    gradient = torch.autograd.grad(found, r)[0].item() if found.requires_grad else 0.0
    assert gradient == slope


def test_the_value_error_and_its_bounds() -> None:
    for value, target, loss in [(1.1, 2, 0.405), (1.5, 2, 0.32), (0.5, 0, 0.32), (1.5, 0, 1.125), (0.5, 2, 1.125)]:
        assert value_error(PPO(), scalar(value), 1.0, target).item() == pytest.approx(loss, rel=1e-14)
    assert value_error(PPO(value_clip=None), scalar(1.5), 1.0, 2).item() == 0.125


def test_one_token_by_hand() -> None:
    """Score 2, truncated; KL k1 of 0.3; V = 1 before, 4 behind."""
    ppo = PPO(gamma=0.5, missing_eos_penalty=1.0, bootstrap_truncated=True, whiten_advantages=False, kl_coef=0.1)
    answer = Answer(old=[-0.7], values=[1.0], after=4.0, score=2.0, truncated=True, ref=[-1.0])
    appraise(ppo, [answer])
    assert answer.returns[0] == pytest.approx(2 - 1 - 0.03 + 2)
    assert answer.advantages[0] == pytest.approx(1.97)
    parts = step_loss(ppo, [answer], [Now([scalar(-0.7)], [scalar(0.5)], [scalar(1.0)])])
    assert parts.policy.item() == pytest.approx(-1.97)
    assert parts.total(ppo).item() == pytest.approx(-1.97 + 0.1 * 1.97**2 / 2)


# The library's parts against it

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "k2 in the reward": {"kl_estimator": "k2", "kl_coef": 0.3},
    "k3 in the reward": {"kl_estimator": "k3", "kl_coef": 0.3, "gamma": 0.9, "gae_lambda": 0.0},
    "k2 in the loss": {"kl_in_loss": True, "kl_estimator": "k2", "kl_coef": 0.3, "entropy_coef": 0.02},
    "k3 in the loss": {"kl_in_loss": True, "kl_coef": 0.3, "aggregation": "sequence_mean", "entropy_coef": 0.02},
    "dual clip": {"ratio_max": 1.5, "clip_high": 0.28, "aggregation": "fixed_length_mean"},
    "truncated": {"bootstrap_truncated": True, "gae_lambda": 1.0, "gamma": 0.95, "value_clip": None},
    "plain": {"whiten_advantages": False, "kl_coef": 0.0, "value_clip": 0.7},
}


def draw() -> tuple[list[Answer], list[Tensor]]:
    """Completions, and log-probs, values and entropies of their tokens now, [N] each."""
    generator = torch.Generator().manual_seed(7)
    shape = (7, sum(LENGTHS))
    old, moved, ref, values, value_moves, entropy, _ = torch.randn(shape, dtype=torch.float64, generator=generator)
    old = -old.abs() - 0.1
    rows = [x.split(LENGTHS) for x in (old, values, old + 0.5 * ref)]
    answers = [
        Answer(o.tolist(), v.tolist(), 0.7 * i, 1.5 - i, truncated=i % 2 == 1, ref=r.tolist())
        for i, (o, v, r) in enumerate(zip(*rows, strict=True))
    ]
    return answers, [(old + 0.4 * moved).requires_grad_(), (values + 0.5 * value_moves).requires_grad_(), entropy.abs()]


def flat(rows: list[list[float]]) -> Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=torch.float64)


def the_library(ppo: PPO, answers: list[Answer]) -> tuple[Tensor, Tensor]:
    """Advantages and returns."""
    segments, old = Segments.of(torch.tensor(LENGTHS)), flat([a.old for a in answers])
    scores = torch.tensor([a.shaped for a in answers], dtype=torch.float64)
    kl = KL_ESTIMATORS[ppo.kl_estimator or "k1"](flat([a.ref for a in answers]) - old)
    rewards = token_rewards(scores, kl, segments, 0.0 if ppo.kl_in_loss else ppo.kl_coef)
    after = torch.tensor([a.after * a.truncated * ppo.bootstrap_truncated for a in answers], dtype=torch.float64)
    found, returns = generalized_advantages(
        rewards, flat([a.values for a in answers]), segments, gamma=ppo.gamma, lam=ppo.gae_lambda, last_values=after
    )
    return whitened(found, Moments.of(found)) if ppo.whiten_advantages else found, returns


@pytest.mark.parametrize("name", SETTINGS)
def test_the_parts_make_the_same_estimate_and_the_same_losses(name: str) -> None:
    ppo = PPO(**SETTINGS[name])
    answers, (logprobs, values, entropy) = draw()
    appraise(ppo, answers)
    found, returns = the_library(ppo, answers)
    torch.testing.assert_close(found, flat([a.advantages for a in answers]), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(returns, flat([a.returns for a in answers]), rtol=1e-12, atol=1e-13)

    columns = (logprobs, entropy, values)
    nows = [Now(*(list(x) for x in rows)) for rows in zip(*(x.split(LENGTHS) for x in columns), strict=True)]
    expected = step_loss(ppo, answers, nows)
    segments, totals = Segments.of(torch.tensor(LENGTHS)), StepTotals.of(LENGTHS, ppo.max_new_tokens)
    objective = Objective(
        aggregation=ppo.aggregation,
        clip=ClipRange(ppo.clip_low, ppo.clip_high, ppo.ratio_max or math.inf),
        kl_coef=ppo.kl_coef,
        kl_estimator=ppo.kl_estimator or ("k3" if ppo.kl_in_loss else "k1"),
        kl_in_reward=not ppo.kl_in_loss,
        entropy_coef=ppo.entropy_coef,
    )
    old, ref = flat([a.old for a in answers]), flat([a.ref for a in answers])
    tokens = PolicyTokens(segments, logprobs, old, found, ref, entropy)
    policy = policy_loss(tokens, objective, totals).loss
    errors = value_loss(values, flat([a.values for a in answers]), returns, ppo.value_clip)
    value = token_mean(errors.loss, segments, totals)
    for ours, theirs, leaf in ((policy, expected.policy, logprobs), (value, expected.value, values)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
        one, other = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    if ppo.value_clip is not None:
        assert errors.clipped.any()


def test_where_nothing_has_moved_the_loss_is_the_plain_policy_gradient() -> None:
    """-mean A grad l, with advantages of mean 0 and standard deviation 1."""
    ppo = PPO()
    answers, _ = draw()
    appraise(ppo, answers)
    logprobs, values = (flat([getattr(a, name) for a in answers]).requires_grad_() for name in ("old", "values"))
    rows = (logprobs.split(LENGTHS), torch.zeros(sum(LENGTHS)).split(LENGTHS), values.split(LENGTHS))
    parts = step_loss(ppo, answers, [Now(*(list(x) for x in row)) for row in zip(*rows, strict=True)])
    whitened_advantages = flat([a.advantages for a in answers])
    assert whitened_advantages.mean().item() == pytest.approx(0, abs=1e-14)
    assert whitened_advantages.std().item() == pytest.approx(1, rel=1e-7)
    slope = torch.autograd.grad(parts.policy, logprobs)[0]
    torch.testing.assert_close(slope, -whitened_advantages / sum(LENGTHS), rtol=1e-12, atol=1e-15)
    error = torch.autograd.grad(parts.value, values)[0]
    expected = (values.detach() - flat([a.returns for a in answers])) / sum(LENGTHS)
    torch.testing.assert_close(error, expected, rtol=1e-12, atol=1e-15)


def test_the_settings_are_those_of_the_trainer() -> None:
    """By name and default, so that a test that sets nothing tests what users get."""
    from trainers.rl_trainer import RLTrainer
    from trainers.settings import defaults_of

    theirs = defaults_of(RLTrainer)
    own = {f.name: f.default for f in dataclasses.fields(PPO)}
    shared = own.keys() & theirs.keys()
    assert {name: own[name] for name in shared} == {name: theirs[name] for name in shared}
    assert own.keys() - shared == {"mask_truncated", "temperature", "max_new_tokens"}
