"""The losses of a micro-batch against each published objective written out, with its gradient by autograd."""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from policy_tokens import LENGTHS, MAX_TOKENS, OBJECTIVES, make_tokens, totals
from published_objectives import LITERAL, Completion
from torch import nn

from relax.causal_lm import LanguageHead
from relax.errors import UserError
from relax.losses import token_logprobs, weighted_logprob_sum
from relax.policy_gradient import (
    AGGREGATIONS,
    PRESETS,
    RATIOS,
    SURROGATES,
    ClipRange,
    Objective,
    PolicyTokens,
    Segments,
    StepTotals,
    logprob_weights,
    policy_loss,
)


def completions(tokens: PolicyTokens) -> list[Completion]:
    assert tokens.ref_logprobs is not None
    parts = zip(
        tokens.logprobs.split(LENGTHS),
        tokens.old_logprobs.split(LENGTHS),
        tokens.ref_logprobs.split(LENGTHS),
        tokens.advantages.split(LENGTHS),
        strict=True,
    )
    return [Completion(list(now), old.tolist(), ref.tolist(), a[0].item()) for now, old, ref, a in parts]


def test_every_preset_has_an_oracle() -> None:
    assert LITERAL.keys() == OBJECTIVES.keys()


@pytest.mark.parametrize("drift", [1e-4, 0.3, 3.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_those_of_the_paper(name: str, drift: float) -> None:
    tokens = make_tokens(drift)
    loss = policy_loss(tokens, OBJECTIVES[name], totals()).loss
    expected = LITERAL[name](completions(tokens))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    found_gradient = torch.autograd.grad(loss, tokens.logprobs)[0]
    expected_gradient = torch.autograd.grad(expected, tokens.logprobs)[0]
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_first_minibatch_follows_the_policy_gradient(name: str) -> None:
    """Where pi = pi_old no variant clips: -A grad l, by its own denominator, and that of the KL penalty."""
    tokens = make_tokens(drift=0.0)
    gradient = torch.autograd.grad(policy_loss(tokens, OBJECTIVES[name], totals()).loss, tokens.logprobs)[0]
    lengths = tokens.segments.spread(tokens.segments.lengths.double())
    denominators = {
        "sequence_mean": len(LENGTHS) * lengths,
        "token_mean": torch.full_like(lengths, sum(LENGTHS)),
        "fixed_length_mean": torch.full_like(lengths, len(LENGTHS) * MAX_TOKENS),
    }
    objective = OBJECTIVES[name]
    expected = -tokens.advantages / denominators[objective.aggregation]
    if objective.ratio == "completion":  # the gradient of a sum of log-probs, not of their mean
        expected = expected * lengths
    if name == "grpo":
        assert tokens.ref_logprobs is not None
        slope = 1 - (tokens.ref_logprobs - tokens.logprobs.detach()).exp()
        expected = expected + 0.04 * slope / denominators["sequence_mean"]
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bound", [1.28, 3.0, 10.0])
def test_ratio_max_is_dual_clip_and_two_sided_clip(bound: float) -> None:
    advantages = torch.tensor([1.0, -1.0, 0.0]).double()
    for r in (0.1, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1, 50.0):
        ratio = torch.full((3,), r, dtype=torch.float64, requires_grad=True)
        loss, _, _ = SURROGATES["clip"](ratio, ratio.log(), advantages, ClipRange(0.2, 0.28, bound))
        gradient = torch.autograd.grad(loss.sum(), ratio)[0]
        for a, found, slope in zip(advantages.tolist(), loss.tolist(), gradient.tolist(), strict=True):
            plain = min(r * a, min(max(r, 0.8), 1.28) * a)
            dual_clip = max(plain, bound * a) if a < 0 else plain  # arXiv 1912.09729
            two_sided = min(min(r, bound) * a, min(max(r, 0.8), 1.28) * a)  # arXiv 2505.07291
            assert found == pytest.approx(-dual_clip)
            assert found == pytest.approx(-two_sided)
            acts = r <= 1.28 if a > 0 else 0.8 <= r <= bound
            assert slope == pytest.approx(-a if acts else 0.0)


def pieces(tokens: PolicyTokens, cuts: list[list[int]]) -> Iterator[PolicyTokens]:
    """Micro-batches of the completions whose numbers are given."""
    for numbers in cuts:
        owned = torch.cat([torch.nonzero(tokens.segments.owners == i).flatten() for i in numbers] or [torch.arange(0)])
        segments = Segments.of(tokens.segments.lengths[torch.tensor(numbers, dtype=torch.long)])
        yield PolicyTokens(segments, *(None if x is None else x[owned] for x in tokens[1:]))  # type: ignore[arg-type]


EXTRAS = {"kl_coef": 0.1, "kl_estimator": "k2", "kl_in_reward": False, "entropy_coef": 0.02}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("cuts", [[[0, 1, 2], [3, 4, 5]], [[5], [2, 0], [], [4, 3, 1]], [[i] for i in range(6)]])
def test_gradient_and_figures_do_not_depend_on_the_micro_batches(name: str, cuts: list[list[int]]) -> None:
    objective = dataclasses.replace(OBJECTIVES[name], **EXTRAS)
    tokens = make_tokens()
    assert tokens.entropy is not None
    tokens.entropy.requires_grad_()
    inputs = [tokens.logprobs, tokens.entropy]
    whole = policy_loss(tokens, objective, totals())
    parts = [policy_loss(part, objective, totals(len(cuts))) for part in pieces(tokens, cuts)]
    loss = torch.stack([part.loss for part in parts]).mean()
    torch.testing.assert_close(loss, whole.loss, rtol=1e-13, atol=1e-14)
    for found, expected in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(whole.loss, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    for figure, expected in whole.means.items():
        assert not expected.requires_grad
        found = torch.stack([part.means[figure] for part in parts]).mean()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)  # shares of tokens are fp32


def test_figures_are_means_over_tokens() -> None:
    tokens = make_tokens(drift=0.6)
    assert tokens.entropy is not None
    assert tokens.ref_logprobs is not None
    objective = PRESETS["dapo"].objective
    found, loss = policy_loss(tokens, objective, totals()).means, policy_loss(tokens, objective, totals()).loss
    r = (tokens.logprobs - tokens.old_logprobs).exp().detach()
    x = (tokens.ref_logprobs - tokens.logprobs).detach()
    expected = {
        "old_kl": (r - 1 - r.log()).mean(),
        "clip_low": ((r < 0.8) & (tokens.advantages < 0)).double().mean(),
        "clip_high": ((r > 1.28) & (tokens.advantages > 0)).double().mean(),
        "entropy": tokens.entropy.mean(),
        "kl": (x.exp() - x - 1).mean(),
        "policy_loss": loss.detach(),
    }
    assert found.keys() == expected.keys()
    assert expected["clip_low"] > 0
    assert expected["clip_high"] > 0
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_penalty_and_bonus_are_aggregated_like_the_surrogate() -> None:
    tokens = make_tokens()
    assert tokens.ref_logprobs is not None
    assert tokens.entropy is not None
    selected = tokens.entropy > 0.6
    x, r = tokens.ref_logprobs - tokens.logprobs, (tokens.logprobs - tokens.old_logprobs).exp()
    objective = Objective(aggregation="sequence_mean", kl_coef=0.1, kl_times_ratio=True, entropy_coef=0.02)
    surrogate = SURROGATES["clip"](r, tokens.logprobs, tokens.advantages, ClipRange()).loss
    by_token = selected * (surrogate - 0.02 * tokens.entropy) + 0.1 * r * (x.exp() - x - 1)
    expected = torch.stack([part.mean() for part in by_token.split(LENGTHS)]).mean()
    loss = policy_loss(tokens._replace(selected=selected), objective, totals()).loss
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_known_in_advance_give_the_gradient_of_the_loss(name: str) -> None:
    """Through a head: the logits once, instead of once more in the backward pass."""
    torch.manual_seed(0)
    hidden = torch.randn(sum(LENGTHS), 8, dtype=torch.float64, requires_grad=True)
    head, targets = LanguageHead(nn.Linear(8, 15).double(), 1.0, None), torch.randint(15, (sum(LENGTHS),))
    logprobs = token_logprobs(hidden, head, targets).logprobs
    tokens = make_tokens()._replace(logprobs=logprobs, old_logprobs=logprobs.detach(), entropy=None)
    expected = torch.autograd.grad(policy_loss(tokens, OBJECTIVES[name], totals()).loss, [hidden, *head.parameters()])
    with torch.no_grad():
        weights = logprob_weights(tokens, OBJECTIVES[name], totals())
    surrogate, _ = weighted_logprob_sum(hidden, head, targets, weights)
    found = torch.autograd.grad(surrogate, [hidden, *head.parameters()])
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_is_infinite_in_fp32_when_the_policy_has_run_away(name: str) -> None:
    tokens = make_tokens(dtype=torch.float32)
    far = (tokens.old_logprobs + 100).requires_grad_()
    tokens = tokens._replace(logprobs=far, advantages=torch.where(tokens.segments.owners == 2, 0, tokens.advantages))
    loss = policy_loss(tokens, OBJECTIVES[name], totals()).loss
    assert loss.isfinite()
    assert torch.autograd.grad(loss, far)[0].isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_completions_that_were_cut_off_are_left_out_of_the_denominators_too(name: str) -> None:
    kept = [0, 3, 5]
    tokens = next(pieces(make_tokens(), [kept]))
    loss = policy_loss(tokens, OBJECTIVES[name], StepTotals.of([LENGTHS[i] for i in kept], MAX_TOKENS)).loss
    everything = completions(make_tokens())
    torch.testing.assert_close(loss, LITERAL[name]([everything[i] for i in kept]), rtol=1e-12, atol=1e-14)


def test_a_step_with_nothing_to_train_on() -> None:
    """All completions were cut off and are left out."""
    nothing = next(pieces(make_tokens(), [[]]))
    for objective in OBJECTIVES.values():
        loss = policy_loss(nothing, objective, StepTotals.of([], MAX_TOKENS)).loss
        assert loss == 0
        assert loss.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": "tokens"}, "--ratio must be one of .*got tokens; did you mean token"),
        ({"surrogate": "ppo"}, "--surrogate must be one of cispo, clip, got ppo"),
        ({"aggregation": "mean"}, "--aggregation must be one of"),
        ({"kl_estimator": "k4"}, "--kl_estimator must be one of k1, k2, k3, got k4"),
        ({"kl_coef": -0.1}, "--kl_coef must lie between 0"),
        ({"entropy_coef": math.nan}, "--entropy_coef must lie between 0"),
        ({"clip": ClipRange(low=1.2)}, "--clip_low must lie between 0 and 1, got 1.2"),
        ({"clip": ClipRange(high=-0.1)}, "--clip_high must lie between 0"),
        ({"clip": ClipRange(ratio_max=1.1)}, "--ratio_max must lie between 1.2 and inf, got 1.1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(**settings)


def test_a_penalty_without_effect_is_not_silent() -> None:
    with pytest.warns(UserWarning, match="--kl_estimator=k1 in the loss has a gradient of 0 on average"):
        Objective(kl_coef=0.1, kl_estimator="k1")
    for objective, missing in ((Objective(kl_coef=0.1), "ref_logprobs"), (Objective(entropy_coef=0.1), "entropy")):
        with pytest.raises(AssertionError, match="nothing to"):
            policy_loss(make_tokens()._replace(**{missing: None}), objective, totals())


def test_every_part_is_in_a_preset() -> None:
    used = {part for o in OBJECTIVES.values() for part in (o.ratio, o.surrogate, o.aggregation)}
    assert used == RATIOS.keys() | SURROGATES.keys() | AGGREGATIONS.keys()
