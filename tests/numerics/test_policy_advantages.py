"""Advantages of groups and from a value function, against their equations written out in Python floats."""

import math
import statistics
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from relax.policy_gradient import ADVANTAGES, Segments, generalized_advantages, group_advantages, without_variance

SCORES = [0.5, -1.0, 2.0, 0.25, 3.0, 3.5, 7.0, 0.0]
GROUPS = [41, 7, 41, 7, 41, 7, 7, 90]  # in any order, of any size, numbered as they like


def others(i: int) -> list[float]:
    return [r for j, r in enumerate(SCORES) if GROUPS[j] == GROUPS[i] and j != i]


def mates(i: int) -> list[float]:
    return [SCORES[i], *others(i)]


def literal_std(i: int) -> float:
    std = statistics.stdev(mates(i)) if len(mates(i)) > 1 else 0.0
    return (SCORES[i] - statistics.mean(mates(i))) / (std + 1e-4)


LITERAL: dict[str, Callable[[int], float]] = {
    "group_std": literal_std,
    "group_mean": lambda i: SCORES[i] - statistics.mean(mates(i)),
    "batch_std": lambda i: (SCORES[i] - statistics.mean(mates(i))) / (statistics.stdev(SCORES) + 1e-4),
    "leave_one_out": lambda i: SCORES[i] - statistics.mean(others(i)) if others(i) else 0.0,
}


def test_every_group_advantage_has_an_oracle() -> None:
    assert LITERAL.keys() == ADVANTAGES.keys()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_group_advantages_are_those_of_the_equation(name: str) -> None:
    found = group_advantages(name, torch.tensor(SCORES, dtype=torch.float64), torch.tensor(GROUPS))
    expected = torch.tensor([LITERAL[name](i) for i in range(len(SCORES))], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_completion_without_score_is_no_part_of_its_group(name: str) -> None:
    scores, groups = torch.tensor(SCORES, dtype=torch.float64), torch.tensor(GROUPS)
    more_scores = torch.cat([scores.new_tensor([torch.nan, torch.nan]), scores])
    more_groups = torch.cat([groups.new_tensor([7, 1000]), groups])
    found = group_advantages(name, more_scores, more_groups)
    assert found[:2].tolist() == [0, 0]
    assert torch.equal(found[2:], group_advantages(name, scores, groups))


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_scores_give_exactly_nothing_to_learn(name: str, size: int) -> None:
    """Naively (R - mean) / (std + 1e-4) of three times 0.9 is 6e-4 in fp32."""
    scores, groups = torch.full((2 * size,), 0.9), torch.tensor([5, 3] * size)
    assert not group_advantages(name, scores, groups).any()
    assert group_advantages(name, scores[:0], groups[:0]).shape == (0,)


def test_groups_without_variance_are_found() -> None:
    nan = math.nan
    scores = torch.tensor([0.1, 1.0, 0.1, 1.0, 0.0, nan, 2.0, nan])
    groups = torch.tensor([3, 8, 3, 8, 8, 9, 11, 11])
    assert without_variance(scores, groups).tolist() == [True, False, True, True]  # of prompts 3, 8, 9, 11


# From a value function


def test_closed_form_of_a_terminal_and_of_a_truncated_episode() -> None:
    """gamma = 1/2, lambda = 1/4, so A_t = d_t + A_{t+1} / 8; V = 8 after the cut."""
    rewards = torch.tensor([0.0, 0, 4, 1, 2], dtype=torch.float64)
    values = torch.tensor([2.0, 4, 2, 6, 4], dtype=torch.float64)
    segments = Segments.of(torch.tensor([3, 2]))
    found, returns = generalized_advantages(
        rewards, values, segments, gamma=0.5, lam=0.25, last_values=values.new_tensor([0, 8])
    )
    d = [Fraction(0), Fraction(-3), Fraction(2), Fraction(-3), Fraction(2)]
    expected = [d[0] + d[1] / 8 + d[2] / 64, d[1] + d[2] / 8, d[2], d[3] + d[4] / 8, d[4]]
    assert found.tolist() == [float(a) for a in expected]
    assert returns.tolist() == [float(a + Fraction(v)) for a, v in zip(expected, values.tolist(), strict=True)]


def literal_gae(r: list[float], v: list[float], after: float, gamma: float, lam: float) -> list[float]:
    advantages, last = [0.0] * len(r), 0.0
    for t in reversed(range(len(r))):
        following = v[t + 1] if t + 1 < len(r) else after
        last = r[t] + gamma * following - v[t] + gamma * lam * last
        advantages[t] = last
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("cut_off", [False, True])
def test_gae_is_the_recursion_of_each_completion(gamma: float, lam: float, cut_off: bool) -> None:
    lengths = [1, 17, 0, 64, 5, 1, 130]
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, sum(lengths), dtype=torch.float64, generator=generator)
    after = torch.randn(len(lengths), dtype=torch.float64, generator=generator) if cut_off else None
    found, returns = generalized_advantages(
        rewards, values, Segments.of(torch.tensor(lengths)), gamma=gamma, lam=lam, last_values=after
    )
    ends = [0.0] * len(lengths) if after is None else after.tolist()
    expected = [
        a
        for r, v, end in zip(rewards.split(lengths), values.split(lengths), ends, strict=True)
        for a in literal_gae(r.tolist(), v.tolist(), end, gamma, lam)
    ]
    torch.testing.assert_close(found, rewards.new_tensor(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, found + values)


def episodes(lengths: list[int], reward: float, value: float) -> tuple[Tensor, Tensor, Segments]:
    """The same reward and value at every token."""
    rewards = torch.full((sum(lengths),), reward, dtype=torch.float64)
    return rewards, torch.full_like(rewards, value), Segments.of(torch.tensor(lengths))


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_of_a_perfect_critic_of_episodes_that_go_on_nothing_is_better_or_worse(lam: float) -> None:
    """1 at every token for ever is worth 1 / (1 - gamma), wherever one looks, and wherever the episode is cut off."""
    rewards, values, segments = episodes([1, 2, 40], reward=1.0, value=10.0)
    after = torch.full((3,), 10.0, dtype=torch.float64)
    found, returns = generalized_advantages(rewards, values, segments, gamma=0.9, lam=lam, last_values=after)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, values)
    terminal, _ = generalized_advantages(rewards, values, segments, gamma=0.9, lam=lam)
    lost = [-9 * (0.9 * lam) ** (n - 1 - t) for n in (1, 2, 40) for t in range(n)]  # 0.9 x 10 that never comes
    torch.testing.assert_close(terminal, terminal.new_tensor(lost), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_lambda_0_looks_one_token_ahead(gamma: float) -> None:
    rewards = torch.tensor([0.0, 1, 4, 3], dtype=torch.float64)
    values = torch.tensor([2.0, 4, -1, 8], dtype=torch.float64)
    after = values.new_tensor([0.0, 6.0])  # the first is over, the second was cut off
    advantages, returns = generalized_advantages(
        rewards, values, Segments.of(torch.tensor([3, 1])), gamma=gamma, lam=0.0, last_values=after
    )
    assert returns.tolist() == [gamma * 4, 1 - gamma, 4, 3 + gamma * 6]
    assert advantages.tolist() == [gamma * 4 - 2, 1 - gamma - 4, 5, 3 + gamma * 6 - 8]


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_lambda_1_counts_what_came_whatever_the_critic_thought(gamma: float) -> None:
    rewards = torch.tensor([2.0, 0, 4, 1, 8], dtype=torch.float64)
    after = torch.tensor([0.0, 16.0], dtype=torch.float64)
    g = gamma
    expected = [2 + 4 * g**2, 4 * g, 4, 1 + 8 * g + 16 * g**2, 8 + 16 * g]
    for seed in range(3):
        values = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        advantages, returns = generalized_advantages(
            rewards, values, Segments.of(torch.tensor([3, 2])), gamma=gamma, lam=1.0, last_values=after
        )
        torch.testing.assert_close(returns, rewards.new_tensor(expected), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(advantages, rewards.new_tensor(expected) - values, rtol=1e-14, atol=1e-14)


def test_an_advantage_ends_with_its_completion() -> None:
    """Nothing leaks between neighbours, of which one has a huge reward, value and bootstrap."""
    rewards, values, segments = episodes([3, 2, 4], reward=1.0, value=0.5)
    calm = generalized_advantages(rewards, values, segments, last_values=torch.zeros(3, dtype=torch.float64))
    rewards[3:5], values[3:5] = 1e9, -1e9
    after = torch.tensor([0.0, 1e9, 0.0], dtype=torch.float64)
    wild = generalized_advantages(rewards, values, segments, last_values=after)
    for x, y in zip(calm, wild, strict=True):
        assert torch.equal(x[:3], y[:3])
        assert torch.equal(x[5:], y[5:])


def test_lambda_1_without_discount_gives_the_sum_of_rewards_to_come() -> None:
    rewards = torch.tensor([0.0, 0, 1, 0, 0.5], dtype=torch.float64)
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    advantages, returns = generalized_advantages(rewards, values, Segments.of(torch.tensor([3, 2])), lam=1)
    torch.testing.assert_close(returns, torch.tensor([1, 1, 1, 0.5, 0.5], dtype=torch.float64))
    assert not advantages.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [0, 2]])
def test_few_tokens(lengths: list[int]) -> None:
    x = torch.ones(sum(lengths))
    advantages, _ = generalized_advantages(x, x, Segments.of(torch.tensor(lengths, dtype=torch.long)))
    assert advantages.tolist() == [[], [0.0], [0.95 * 0 + 1.0, 0.0]][len(x)]


def test_sums_and_means_of_segments_and_their_gradients() -> None:
    segments = Segments.of(torch.tensor([2, 0, 3]), num_tokens=5)
    x = torch.arange(1.0, 6, dtype=torch.float64, requires_grad=True)
    assert segments.owners.tolist() == [0, 0, 2, 2, 2]
    assert segments.sums(x).tolist() == [3, 0, 12]
    assert segments.means(x).tolist() == [1.5, 0, 4]
    assert segments.last_tokens().tolist() == [False, True, False, False, True]
    gradient: Tensor = torch.autograd.grad(segments.means(x).square().sum(), x)[0]
    torch.testing.assert_close(gradient, torch.tensor([1.5, 1.5, 8 / 3, 8 / 3, 8 / 3], dtype=torch.float64))
