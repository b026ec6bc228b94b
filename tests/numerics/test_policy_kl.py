"""KL estimators against the KL divergence of whole distributions, its controller, token rewards, and penalties."""

import math

import pytest
import torch
from torch import Tensor

from relax.policy_gradient import (
    KL_ESTIMATORS,
    Segments,
    adapted_kl_coef,
    penalized_scores,
    soft_overlong_penalty,
    token_rewards,
    top_entropy_threshold,
    update_went_too_far,
    without_end_penalized,
)

V = 9


def distributions() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of a policy (from its logits, with gradient), of the reference, and of an older policy."""
    generator = torch.Generator().manual_seed(3)
    logits, reference, old = 1.5 * torch.randn(3, V, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    return logits, reference.log_softmax(-1), old.log_softmax(-1)


def divergence(logprobs: Tensor, reference: Tensor) -> Tensor:
    return sum((p.exp() * (p - q) for p, q in zip(logprobs, reference, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_the_kl_divergence_on_average(name: str) -> None:
    logits, reference, _ = distributions()
    logprobs = logits.log_softmax(-1)
    mean = (logprobs.exp() * KL_ESTIMATORS[name](reference - logprobs)).sum()
    torch.testing.assert_close(mean, divergence(logprobs, reference), rtol=1e-13, atol=1e-13)


def mean_gradient(name: str, *, ratio: bool = False) -> Tensor:
    """Of the estimate in a loss, over tokens sampled from the policy, or from the older one and times the ratio."""
    logits, reference, old = distributions()
    logprobs = logits.log_softmax(-1)
    estimate = KL_ESTIMATORS[name](reference - logprobs)
    if ratio:
        return torch.autograd.grad((old.exp() * (logprobs - old).exp() * estimate).sum(), logits)[0]
    return torch.autograd.grad((logprobs.exp().detach() * estimate).sum(), logits)[0]


def test_what_the_gradients_of_the_estimators_are_on_average() -> None:
    logits, reference, _ = distributions()
    truth = torch.autograd.grad(divergence(logits.log_softmax(-1), reference), logits)[0]
    assert mean_gradient("k1").abs().max() < 1e-15
    torch.testing.assert_close(mean_gradient("k2"), truth, rtol=1e-12, atol=1e-14)
    assert (mean_gradient("k3") - truth).abs().max() > 0.01  # the gradient of the reverse divergence
    torch.testing.assert_close(mean_gradient("k3", ratio=True), truth, rtol=1e-12, atol=1e-14)


def test_estimators_are_those_of_the_equations() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    literal = {"k1": lambda y: -y, "k2": lambda y: y**2 / 2, "k3": lambda y: math.exp(y) - y - 1}
    assert literal.keys() == KL_ESTIMATORS.keys()
    for name, function in literal.items():
        expected = x.new_tensor([function(y) for y in x.tolist()])
        torch.testing.assert_close(KL_ESTIMATORS[name](x), expected, rtol=1e-12, atol=1e-14)


def test_k3_keeps_its_digits_near_zero_in_fp32() -> None:
    x = torch.tensor([1e-4, -1e-4, 3e-3])
    exact = torch.expm1(x.double()) - x.double()
    torch.testing.assert_close(KL_ESTIMATORS["k3"](x).double(), exact, rtol=5e-3, atol=0)
    assert ((x.exp() - x - 1).double() / exact - 1).abs().max() > 0.5  # written plainly it is noise


def test_the_coefficient_follows_the_target_as_published() -> None:
    settings = {"target": 6.0, "horizon": 10_000.0, "num_samples": 256}
    for kl, error in [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-1.0, -0.2)]:
        assert adapted_kl_coef(0.2, kl, **settings) == pytest.approx(0.2 * (1 + error * 256 / 10_000), rel=1e-14)


def test_the_coefficient_finds_the_one_that_keeps_the_target() -> None:
    kl_coef = 0.01
    for _ in range(2000):
        kl = 3 / kl_coef  # the stronger the penalty, the closer
        kl_coef = adapted_kl_coef(kl_coef, kl, target=6, horizon=1000, num_samples=64)
    assert kl_coef == pytest.approx(0.5, rel=1e-6)


def test_an_iteration_stops_beyond_one_and_a_half_times_the_target() -> None:
    assert not update_went_too_far(0.015, 0.01)
    assert update_went_too_far(0.0151, 0.01)


def test_rewards_of_tokens_and_of_completions() -> None:
    segments = Segments.of(torch.tensor([2, 1, 3]))
    scores = torch.tensor([1.0, -2, 0.5], dtype=torch.float64)
    kl = torch.tensor([0.1, -0.2, 0.3, 0, 0.4, 0.5], dtype=torch.float64)
    rewards = token_rewards(scores, kl, segments, 0.05)
    expected = [-0.005, 1 + 0.01, -2 - 0.015, 0, -0.02, 0.5 - 0.025]
    torch.testing.assert_close(rewards, scores.new_tensor(expected), rtol=1e-14, atol=1e-16)
    of_completions = penalized_scores(scores, kl, segments, 0.05)
    torch.testing.assert_close(of_completions, segments.sums(rewards), rtol=1e-14, atol=0)


def test_penalties_on_the_end_and_the_length() -> None:
    """Equation 13 with L_max = 20, L_cache = 5; from 15 tokens on it falls by 1/5 a token."""
    penalty = soft_overlong_penalty(torch.tensor([1, 15, 16, 18, 20, 25]), max_tokens=20, buffer_tokens=5)
    torch.testing.assert_close(penalty, torch.tensor([0, 0, -0.2, -0.6, -1, -1]))
    scores = without_end_penalized(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), 1.5)
    assert scores.tolist() == [1.0, -0.5]


def test_the_most_uncertain_share_of_the_tokens() -> None:
    entropies = torch.tensor([0.3, 2.0, 0.0, 1.5, 0.1, 0.2, 0.9, 0.4, 0.5, 0.6])
    for share, selected in [(0.2, 2), (0.5, 5), (1.0, 10)]:
        assert (entropies >= top_entropy_threshold(entropies, share)).sum() == selected
    assert top_entropy_threshold(entropies[:0], 0.2) == 0
