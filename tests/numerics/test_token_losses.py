"""Each token loss against its published equation, written out over the full logits and differentiated by autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_head import D, N, V, make_head, several_chunks  # noqa: F401  (the last is a fixture for all tests)
from torch import Tensor, nn

from relax.causal_lm import LanguageHead
from relax.losses import NLL, TOKEN_LOSSES, TokenLoss, weighted_logprob_sum, weighted_loss_sum
from relax.losses.token_losses import dft, uniform_nll


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = (3 * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    return hidden, torch.randint(V, (N,)), torch.rand(N, dtype=torch.float64)


def literal_nll(z: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(z, -1).gather(-1, y[:, None]).squeeze(-1)


def literal_dft(z: Tensor, y: Tensor) -> Tensor:
    p = torch.softmax(z, -1).gather(-1, y[:, None]).squeeze(-1)
    return -p.detach() * p.log()


def literal_smoothing(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with the target distribution 0.9 onehot(y) + 0.1 / V."""
    target = 0.9 * F.one_hot(y, V).to(z.dtype) + 0.1 / V
    return -(target * torch.log_softmax(z, -1)).sum(-1)


def literal_z_loss(z: Tensor, y: Tensor) -> Tensor:
    return 0.02 * z.exp().sum(-1).log() ** 2


LOSSES: dict[str, tuple[TokenLoss, Callable[[Tensor, Tensor], Tensor]]] = {
    "nll": (NLL, literal_nll),
    "dft": (TokenLoss(dft), literal_dft),
    "label smoothing": (TokenLoss(label_smoothing=0.1), literal_smoothing),
    "z-loss": (TokenLoss(z_loss=0.02), lambda z, y: literal_nll(z, y) + literal_z_loss(z, y)),
    "dft and z-loss": (TokenLoss(dft, z_loss=0.02), lambda z, y: literal_dft(z, y) + literal_z_loss(z, y)),
    "smoothing and z-loss": (
        TokenLoss(label_smoothing=0.1, z_loss=0.02),
        lambda z, y: literal_smoothing(z, y) + literal_z_loss(z, y),
    ),
}


@pytest.mark.parametrize("options", [{}, {"bias": True, "scale": 1.7, "softcap": 5.0}], ids=["linear", "any head"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_equation(name: str, temperature: float, options: dict) -> None:
    token_loss, literal = LOSSES[name]
    hidden, targets, weights = make_inputs()
    head = make_head(**options)
    total, tokens = weighted_loss_sum(hidden, head, targets, weights, token_loss, temperature=temperature)
    found = torch.autograd.grad(2.5 * total, [hidden, *head.parameters()])

    z = head(hidden) / temperature
    expected_total = (weights * literal(z, targets)).sum()
    expected = torch.autograd.grad(2.5 * expected_total, [hidden, *head.parameters()])
    torch.testing.assert_close(total, expected_total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tokens.logprobs, -literal_nll(z, targets), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_label_smoothing_is_that_of_torch_and_of_transformers() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    hidden, targets, _ = make_inputs()
    head = make_head()
    mean, _ = weighted_loss_sum(
        hidden, head, targets, torch.full((N,), 1 / N, dtype=torch.float64), TokenLoss(label_smoothing=0.3)
    )
    logits = head(hidden)
    torch.testing.assert_close(mean, F.cross_entropy(logits, targets, label_smoothing=0.3), rtol=1e-12, atol=0)
    theirs = LabelSmoother(epsilon=0.3)({"logits": logits[None]}, targets[None])
    torch.testing.assert_close(mean, theirs, rtol=1e-6, atol=0)  # they sum in fp32


def test_dft_pulls_by_p_times_what_the_nll_does() -> None:
    """Equation by equation: d/dz_y of -sg(p) log p is -p (1 - p), largest where the model is undecided."""
    z = torch.linspace(-6, 6, 7, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0])
    z.requires_grad_()
    identity = LanguageHead(nn.Linear(2, 2, bias=False).double(), 1.0, None)
    identity.projection.weight.data = torch.eye(2, dtype=torch.float64)
    ones = torch.ones(7, dtype=torch.float64)
    total, _ = weighted_loss_sum(z, identity, torch.zeros(7, dtype=torch.long), ones, TokenLoss(dft))
    (slope,) = torch.autograd.grad(total, z)
    p = torch.sigmoid(z[:, 0])
    torch.testing.assert_close(slope[:, 0], -p * (1 - p), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_an_impossible_token_has_a_finite_loss_and_gradient_in_fp32(name: str) -> None:
    hidden = (torch.eye(2)[:1] * 200).requires_grad_()
    head = LanguageHead(nn.Linear(2, 4, bias=False), 1.0, None)
    head.projection.weight.data = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    total, _ = weighted_loss_sum(hidden, head, torch.tensor([1]), torch.ones(1), LOSSES[name][0])
    gradients = torch.autograd.grad(total, [hidden, *head.parameters()])
    assert all(torch.isfinite(x).all() for x in (total, *gradients))


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients_the_value_is_the_same(name: str) -> None:
    hidden, targets, weights = make_inputs()
    head = make_head()
    total, _ = weighted_loss_sum(hidden, head, targets, weights, LOSSES[name][0])
    with torch.no_grad():
        again, _ = weighted_loss_sum(hidden, head, targets, weights, LOSSES[name][0])
    assert torch.equal(total, again)
    assert not again.requires_grad


def test_plain_nll_is_the_negative_log_prob_bit_for_bit() -> None:
    hidden, targets, weights = make_inputs()
    head = make_head()
    loss, _ = weighted_loss_sum(hidden, head, targets, weights)
    logprob, _ = weighted_logprob_sum(hidden, head, targets, weights)
    found = torch.autograd.grad(loss, [hidden, *head.parameters()])
    expected = torch.autograd.grad(-logprob, [hidden, *head.parameters()])
    assert torch.equal(loss, -logprob)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_loss_that_uses_the_mean_without_saying_so_is_nan_and_not_wrong() -> None:
    hidden, targets, weights = make_inputs()
    total, _ = weighted_loss_sum(hidden, make_head(), targets, weights, TokenLoss(uniform_nll))
    assert total.isnan()


def test_no_targets_give_zero() -> None:
    hidden = torch.randn(0, D, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.float64)
    total, _ = weighted_loss_sum(hidden, make_head(), nothing.long(), nothing, TokenLoss(label_smoothing=0.1))
    total.backward()
    assert total == 0


def test_compiled_is_the_same() -> None:
    hidden, targets, weights = make_inputs()
    head = make_head(bias=True)
    token_loss = TokenLoss(label_smoothing=0.1, z_loss=0.02)
    plain, fused = (weighted_loss_sum(hidden, head, targets, weights, token_loss, compiled=c)[0] for c in (False, True))
    expected, found = (torch.autograd.grad(total, [hidden, *head.parameters()]) for total in (plain, fused))
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_half_precision_logits_are_treated_in_fp32() -> None:
    hidden, targets, _ = make_inputs()
    half = hidden.detach().bfloat16()
    head = make_head()
    head.projection.bfloat16()
    found, _ = weighted_loss_sum(half, head, targets, torch.ones(N), LOSSES["smoothing and z-loss"][0])
    expected = LOSSES["smoothing and z-loss"][1](head(half).float(), targets).sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_table_names_what_the_flag_offers() -> None:
    from typing import get_args, get_type_hints

    from trainers import SFTTrainer

    assert set(get_args(get_type_hints(SFTTrainer.__init__)["loss"])) == set(TOKEN_LOSSES)
