"""Chunked token log-probs against F.cross_entropy and plain autograd through the full logits, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from small_head import D, N, V, make_head, several_chunks  # noqa: F401  (the last is a fixture for all tests)
from torch import Tensor, nn

from relax.causal_lm import LanguageHead
from relax.losses import token_logprobs, weighted_logprob_sum


def make_inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    hidden = (3 * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    return hidden, torch.randint(V, (N,)), torch.rand(N, dtype=torch.float64)


HEADS = [{}, {"bias": True}, {"scale": 0.3}, {"softcap": 2.0}, {"bias": True, "scale": 1.7, "softcap": 5.0}]


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_weighted_sum_equals_cross_entropy_in_value_and_gradient(options: dict, temperature: float) -> None:
    hidden, targets, weights = make_inputs()
    head = make_head(**options)
    total, tokens = weighted_logprob_sum(hidden, head, targets, weights, temperature=temperature)
    found = torch.autograd.grad(-2.5 * total, [hidden, *head.parameters()])

    nll = F.cross_entropy(head(hidden) / temperature, targets, reduction="none")
    expected = torch.autograd.grad(2.5 * (weights * nll).sum(), [hidden, *head.parameters()])
    torch.testing.assert_close(-total, (weights * nll).sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-tokens.logprobs, nll, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_differentiable_and_right(options: dict, temperature: float) -> None:
    hidden, targets, weights = make_inputs()
    entropy_weights = torch.rand(N, dtype=torch.float64)
    head = make_head(**options)
    tokens = token_logprobs(hidden, head, targets, temperature=temperature)
    loss = (weights * tokens.logprobs.exp()).sum() + (entropy_weights * tokens.entropy).sum()
    found = torch.autograd.grad(loss, [hidden, *head.parameters()])

    full = torch.distributions.Categorical(logits=head(hidden) / temperature)
    expected_loss = (weights * full.log_prob(targets).exp()).sum() + (entropy_weights * full.entropy()).sum()
    expected = torch.autograd.grad(expected_loss, [hidden, *head.parameters()])
    torch.testing.assert_close(tokens.logprobs, full.log_prob(targets), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tokens.entropy, full.entropy(), rtol=1e-11, atol=1e-12)
    assert torch.equal(tokens.correct, full.logits.argmax(-1) == targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    hidden, targets, _ = make_inputs()
    head = make_head(bias=True, softcap=3.0)
    assert torch.autograd.gradcheck(
        lambda h: token_logprobs(h, head, targets[:20])[:2], hidden[:20].detach().requires_grad_()
    )


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_theirs() -> None:
    hidden, targets, weights = make_inputs()
    head = make_head()
    head.projection.requires_grad_(False)
    for total in (
        weighted_logprob_sum(hidden, head, targets, weights)[0],
        (weights * token_logprobs(hidden, head, targets).logprobs).sum(),
    ):
        (found,) = torch.autograd.grad(total, hidden)
        (expected,) = torch.autograd.grad(
            -(weights * F.cross_entropy(head(hidden), targets, reduction="none")).sum(), hidden
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_frozen_hidden_states_still_train_the_head() -> None:
    hidden, targets, weights = make_inputs()
    head = make_head()
    total, _ = weighted_logprob_sum(hidden.detach(), head, targets, weights)
    found = torch.autograd.grad(total, list(head.parameters()))
    expected = torch.autograd.grad(
        -(weights * F.cross_entropy(head(hidden), targets, reduction="none")).sum(), list(head.parameters())
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_values_are_the_same() -> None:
    hidden, targets, weights = make_inputs()
    head = make_head()
    with torch.no_grad():
        total, tokens = weighted_logprob_sum(hidden, head, targets, weights)
        alone = token_logprobs(hidden, head, targets)
    torch.testing.assert_close(total, (weights * alone.logprobs).sum())
    assert torch.equal(tokens.logprobs, alone.logprobs)
    assert not total.requires_grad


def test_no_targets_give_zero_and_zero_gradients() -> None:
    hidden = torch.randn(0, D, dtype=torch.float64, requires_grad=True)
    head = make_head()
    total, tokens = weighted_logprob_sum(
        hidden, head, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
    )
    total.backward()
    assert total == 0
    assert tokens.entropy.shape == (0,)
    assert head.projection.weight.grad is not None
    assert not head.projection.weight.grad.any()


def test_an_impossible_token_has_a_finite_logprob_in_fp32() -> None:
    """exp(l) underflows to 0 long before l itself does."""
    hidden = torch.eye(2)[:1] * 200
    head = LanguageHead(nn.Linear(2, 4, bias=False), 1.0, None)
    head.projection.weight.data = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    tokens = token_logprobs(hidden, head, torch.tensor([1]))
    assert tokens.logprobs.item() == pytest.approx(-400)
    assert tokens.entropy.item() == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_summed_in_fp32() -> None:
    hidden, targets, _ = make_inputs()
    head = make_head()
    head.projection.bfloat16()
    tokens = token_logprobs(hidden.detach().bfloat16(), head, targets)
    expected = -F.cross_entropy(head(hidden.detach().bfloat16()).float(), targets, reduction="none")
    assert tokens.logprobs.dtype == torch.float32
    torch.testing.assert_close(tokens.logprobs, expected, rtol=1e-5, atol=1e-5)


def test_compiled_is_the_same() -> None:
    hidden, targets, weights = make_inputs()
    head = make_head(bias=True)
    plain, _ = weighted_logprob_sum(hidden, head, targets, weights)
    fused, tokens = weighted_logprob_sum(hidden, head, targets, weights, compiled=True)
    expected = torch.autograd.grad(plain, [hidden, *head.parameters()])
    found = torch.autograd.grad(fused, [hidden, *head.parameters()])
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(tokens.entropy, token_logprobs(hidden, head, targets).entropy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_computes_the_logits_again_in_the_precision_of_forward(dtype: torch.dtype) -> None:
    head = LanguageHead(nn.Linear(D, V), 1.0, None)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, (N,))
    with torch.autocast("cpu", torch.bfloat16):
        recomputed = token_logprobs(hidden, head, targets).logprobs.sum()
        formed, _ = weighted_logprob_sum(hidden, head, targets, torch.ones(N))
    found = torch.autograd.grad(recomputed, [hidden, *head.parameters()])
    expected = torch.autograd.grad(formed, [hidden, *head.parameters()])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
