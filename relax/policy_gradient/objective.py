"""The loss of a micro-batch of sampled tokens: the parts of this room, put together. The same for PPO and GRPO.

Legend: N tokens of S completions, see ``segments``. l log-prob, now, when sampled (l_old), by the reference (l_ref).
"""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relax.checks import between, one_of
from relax.policy_gradient.aggregation import AGGREGATIONS, StepTotals, token_mean
from relax.policy_gradient.kl import KL_ESTIMATORS, k3
from relax.policy_gradient.ratios import RATIOS
from relax.policy_gradient.segments import Segments
from relax.policy_gradient.surrogates import PPO_RANGE, SURROGATES, ClipRange


@dataclass(frozen=True)
class Objective:
    """Which parts, by their names, and their coefficients.

    Raises:
        UserError: an unknown name, a negative coefficient, or bounds that cannot work.
    """

    ratio: str = "token"
    surrogate: str = "clip"
    aggregation: str = "token_mean"
    clip: ClipRange = PPO_RANGE
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    kl_in_reward: bool = False
    """The KL penalty is part of the rewards (``scores``), and not of this loss."""
    kl_times_ratio: bool = False
    """Multiply the KL of a token by its ratio: unbiased off policy too (arXiv 2512.02556), and TRL's default."""
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        one_of(RATIOS, ratio=self.ratio)
        one_of(SURROGATES, surrogate=self.surrogate)
        one_of(AGGREGATIONS, aggregation=self.aggregation)
        one_of(KL_ESTIMATORS, kl_estimator=self.kl_estimator)
        between(0, 1000, kl_coef=self.kl_coef, entropy_coef=self.entropy_coef)
        between(0, 1, clip_low=self.clip.low)
        between(0, math.inf, clip_high=self.clip.high)
        between(1 + self.clip.high if self.surrogate == "clip" else 1, math.inf, ratio_max=self.clip.ratio_max)
        if self.kl_coef and self.kl_estimator == "k1" and not self.kl_in_reward:
            warnings.warn("--kl_estimator=k1 in the loss has a gradient of 0 on average; use k2 or k3", stacklevel=3)


class PolicyTokens(NamedTuple):
    """What is known of each token of a micro-batch, [N]."""

    segments: Segments
    logprobs: Tensor
    """l, with gradient."""
    old_logprobs: Tensor
    """l_old."""
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    """l_ref; needed where the loss has a KL penalty, and the KL is reported wherever it is there."""
    entropy: Tensor | None = None
    """Nats; with gradient and needed where there is an entropy bonus, and reported wherever it is there."""
    selected: Tensor | None = None
    """bool: the tokens that the surrogate and the entropy bonus act on (``entropy``); None for all."""


class PolicyLoss(NamedTuple):
    """Of a micro-batch."""

    loss: Tensor
    means: dict[str, Tensor]
    """Detached, and scaled as the loss: means over the micro-batches of a step are means over its tokens."""
    ratio: Tensor
    """[N], detached; for extremes, which are not means."""


def policy_loss(tokens: PolicyTokens, objective: Objective, totals: StepTotals) -> PolicyLoss:
    """Aggregated surrogate - c entropy + beta KL, x ``totals.micro_batches``.

    The bonus and the penalty are aggregated as the surrogate is. The means are ``policy_loss``, ``old_kl`` (of pi_old
    and pi, by k3), ``clip_low`` and ``clip_high`` (shares of tokens), and ``kl`` and ``entropy`` if known.
    """
    assert tokens.ref_logprobs is not None or objective.kl_in_reward or not objective.kl_coef, "nothing to penalize"
    assert tokens.entropy is not None or not objective.entropy_coef, "nothing to reward with the bonus"
    segments, bounds = tokens.segments, objective.clip
    log_ratio = tokens.logprobs - tokens.old_logprobs
    ratio = RATIOS[objective.ratio](log_ratio, segments)
    surrogate = SURROGATES[objective.surrogate](ratio, tokens.logprobs, tokens.advantages, bounds)
    aggregate = AGGREGATIONS[objective.aggregation]
    loss = acting = _selected(surrogate.loss, tokens)
    by_token = {"old_kl": k3(log_ratio), "clip_low": surrogate.too_low, "clip_high": surrogate.too_high}
    if tokens.entropy is not None:
        by_token["entropy"] = tokens.entropy
        loss = loss - objective.entropy_coef * _selected(tokens.entropy, tokens)
    if tokens.ref_logprobs is not None:
        by_token["kl"] = kl = KL_ESTIMATORS[objective.kl_estimator](tokens.ref_logprobs - tokens.logprobs)
        if not objective.kl_in_reward:
            loss = loss + objective.kl_coef * (kl * ratio if objective.kl_times_ratio else kl)
    means = {name: token_mean(x.detach(), segments, totals) for name, x in by_token.items()}
    means["policy_loss"] = aggregate(acting.detach(), segments, totals)
    scale = totals.micro_batches
    scaled_means = {name: scale * mean for name, mean in means.items()}
    return PolicyLoss(scale * aggregate(loss, segments, totals), scaled_means, ratio.detach())


def logprob_weights(tokens: PolicyTokens, objective: Objective, totals: StepTotals) -> Tensor:
    """The derivative of the loss with respect to each log-prob, at ``tokens.logprobs``, [N].

    On the first pass over an experience the log-probs are known from sampling. Then the gradient of the loss is that of
    ``weighted_logprob_sum`` with these weights, which computes the logits once where a loss of log-probs needs them
    twice. Not with an entropy bonus, which does not act through log-probs.
    """
    assert not objective.entropy_coef
    with torch.enable_grad():
        at = tokens._replace(logprobs=tokens.logprobs.detach().requires_grad_())
        return torch.autograd.grad(policy_loss(at, objective, totals).loss, at.logprobs)[0]


def _selected(x: Tensor, tokens: PolicyTokens) -> Tensor:
    return x if tokens.selected is None else x * tokens.selected
