"""The value loss against its equation, and moments that arrive in parts against those of everything at once."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from relax.policy_gradient import Moments, explained_variance, normalized, value_loss, whitened


def literal_value_loss(v: float, v_old: float, r: float, c: float | None) -> float:
    if c is None:
        return 0.5 * (v - r) ** 2
    bounded = min(max(v, v_old - c), v_old + c)
    return 0.5 * max((v - r) ** 2, (bounded - r) ** 2)


def random_values() -> tuple[Tensor, Tensor, Tensor]:
    values, old_values, returns = torch.randn(3, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return values.requires_grad_(), old_values, returns


@pytest.mark.parametrize("clip", [None, 0.2, 0.7])
def test_value_loss_is_that_of_the_equation(clip: float | None) -> None:
    values, old_values, returns = random_values()
    loss, clipped = value_loss(values, old_values, returns, clip)
    rows = zip(values.tolist(), old_values.tolist(), returns.tolist(), strict=True)
    torch.testing.assert_close(loss, loss.new_tensor([literal_value_loss(*row, clip) for row in rows]))
    gradient = torch.autograd.grad(loss.sum(), values)[0]
    expected = torch.where(clipped, 0, values.detach() - returns)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)
    assert clipped.any() == (clip is not None)
    assert not clipped.all()


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        # V_old = 1, c = 1/4: values act between 3/4 and 5/4
        (1.125, 2.0, 0.3828125, -0.875),  # inside, whatever the target
        (1.125, 0.0, 0.6328125, 1.125),
        (1.5, 2.0, 0.28125, 0.0),  # moved up by more than c towards its target: far enough for this iteration
        (0.5, 0.0, 0.28125, 0.0),  # and down
        (1.5, 0.0, 1.125, 1.5),  # moved up, but its target lies below: back it goes
        (0.5, 2.0, 1.125, -1.5),
        (2.5, 2.0, 0.28125, 0.0),  # beyond its target, but nearer than the bound is: the bound counts
        (4.0, 2.0, 2.0, 2.0),  # and farther
        (1.25, 2.0, 0.28125, -0.75),  # on the bound
    ],
)
def test_values_are_clipped_on_both_sides(value: float, target: float, loss: float, slope: float) -> None:
    v = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    found, clipped = value_loss(v, torch.ones_like(v), torch.full_like(v, target), 0.25)
    assert found.item() == loss
    assert clipped.item() == (slope == 0)
    if value != 1.25:  # where autograd may share the slope between the two sides
        assert torch.autograd.grad(found.sum(), v)[0].item() == slope


@pytest.mark.parametrize("clip", [0.2, None])
def test_before_values_move_the_bound_changes_nothing(clip: float | None) -> None:
    """The first minibatch regresses to the returns."""
    values, _, returns = random_values()
    loss, clipped = value_loss(values, values.detach(), returns, clip)
    assert not clipped.any()
    gradient = torch.autograd.grad(loss.sum(), values)[0]
    torch.testing.assert_close(gradient, (values - returns).detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("parts", [[500], [1, 499], [0, 100, 250, 0, 150], [1] * 500])
def test_moments_in_parts_are_those_of_everything(parts: list[int]) -> None:
    """Numbers far from 0: sums of squares would lose nine digits."""
    x = 3e4 + torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = Moments.merged(Moments.of(part) for part in x.split(parts))
    assert whole.count == 500
    assert whole.mean == pytest.approx(x.mean().item(), rel=1e-14)
    assert whole.std == pytest.approx(x.std().item(), rel=1e-9)
    assert whole.variance == pytest.approx(x.var(correction=0).item(), rel=1e-9)


def test_moments_of_fp32_keep_their_digits() -> None:
    x = 3e6 + 10 * torch.randn(5000, generator=torch.Generator().manual_seed(1))
    found = Moments.of(x)
    assert found.mean == pytest.approx(x.double().mean().item(), rel=1e-9)
    assert found.std == pytest.approx(x.double().std().item(), rel=1e-6)


def test_whitened_over_two_ranks() -> None:
    x = 5 + 3 * torch.randn(101, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ranks = x[:30], x[30:]
    moments = Moments.merged(Moments.of(part) for part in ranks)
    found = torch.cat([whitened(part, moments) for part in ranks])
    torch.testing.assert_close(found, (x - x.mean()) / (x.std() + 1e-8), rtol=1e-12, atol=1e-12)


def test_nothing_and_constants_do_not_divide_by_zero() -> None:
    assert Moments.merged([]) == Moments.of(torch.zeros(0)) == Moments()
    for x in (torch.full((4,), 0.1), torch.full((1,), 0.1)):
        assert whitened(x, Moments.of(x)).abs().max() <= 1
        assert normalized(x, Moments.of(x)).abs().max() < 1e-7


def test_explained_variance() -> None:
    returns, noise = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for values, expected in [(returns, 1.0), (returns + 5, 1.0), (torch.zeros(1000), 0.0), (-returns, -3.0)]:
        found = explained_variance(Moments.of(returns), Moments.of(returns - values))
        assert found == pytest.approx(expected, abs=1e-12)
    noisy = explained_variance(Moments.of(returns), Moments.of(noise))
    assert noisy == pytest.approx(1 - noise.var().item() / returns.var().item(), rel=1e-12)
    assert math.isnan(explained_variance(Moments.of(torch.ones(3)), Moments.of(torch.rand(3))))


def test_running_normalization_of_scores() -> None:
    batches = torch.tensor([[1.0, 3.0], [5.0, 70.0]], dtype=torch.float64)
    running = Moments()
    for batch in batches:
        running = Moments.merged([running, Moments.of(batch)])
    seen = batches.flatten()
    expected = (batches[1] - seen.mean()) / seen.std()
    torch.testing.assert_close(normalized(batches[1], running), expected)
    torch.testing.assert_close(normalized(batches[1], running, clip=1.2), expected.clamp(-1.2, 1.2))


def test_running_moments_are_those_of_all_scores_so_far() -> None:
    """Over many iterations of any size, through checkpoints, and not those of the last one."""
    scores = 40 + 3 * torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    running, seen = Moments(), 0
    for batch in scores.split([1, 64, 0, 7, 128, 100]):
        running = Moments.merged([running, Moments.of(batch)])
        running = Moments(**dataclasses.asdict(running))
        seen += len(batch)
        so_far = scores[:seen]
        std = float(so_far.std()) if seen > 1 else 1.0
        assert running.count == seen
        torch.testing.assert_close(normalized(batch, running), (batch - so_far.mean()) / std, rtol=1e-10, atol=1e-10)
    everything = normalized(scores, running)
    assert float(everything.mean()) == pytest.approx(0, abs=1e-12)
    assert float(everything.std()) == pytest.approx(1, rel=1e-12)
