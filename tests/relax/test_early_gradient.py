"""A gradient that is formed before backward: the same numbers, and what it was made from is gone."""

import gc
import weakref

import torch
from torch import nn

from relax.early_gradient import formed_now


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def test_gradients_are_those_of_a_plain_backward_pass_whatever_slope_comes() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, early = model(), model()
    for slope in (1.0, 0.25, 3.0):
        for net in (plain, early):
            net.zero_grad()
        (plain(x).square().mean() * slope).backward()
        loss = early(x).square().mean()
        handed = formed_now(loss, list(early.parameters()), slope=0.25)
        assert handed.item() == loss.item()
        assert all(p.grad is None for p in early.parameters())
        (handed * slope).backward()
        for ours, theirs in zip(early.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-14, atol=1e-16)


def test_gradients_add_up_and_other_losses_go_their_own_way() -> None:
    net, other = model(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    x = torch.ones(2, 3, dtype=torch.float64)
    for _ in range(2):
        (formed_now(net(x).sum(), list(net.parameters()), slope=1.0) + other.square()).backward()
    expected = model()
    (2 * expected(x).sum()).backward()
    for ours, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert other.grad == 8


def test_the_activations_are_free_before_backward() -> None:
    net, kept = model(), []
    net[1].register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    x = torch.ones(2, 3, dtype=torch.float64)
    loss = net(x).sum()
    assert kept[-1]() is not None
    handed = formed_now(loss, list(net.parameters()), slope=1.0)
    del loss
    gc.collect()
    assert kept[-1]() is None
    handed.backward()


def test_a_weight_without_part_in_the_loss_gets_none() -> None:
    net, idle = model(), nn.Parameter(torch.ones(2))
    formed_now(net(torch.ones(1, 3).double()).sum(), [*net.parameters(), idle], slope=1.0).backward()
    assert idle.grad is None
