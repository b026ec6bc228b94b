"""The losses whose gradient improves the policy: of a token, before they are put together (``aggregation``).

Legend: N tokens. r the ratio (``ratios``), A the advantage, l the log-prob, sg without gradient.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ClipRange(NamedTuple):
    """How far a ratio may go before it stops to act."""

    low: float = 0.2
    """eps_low: the lower bound is 1 - eps_low."""
    high: float = 0.2
    """eps_high: the upper bound is 1 + eps_high."""
    ratio_max: float = math.inf
    """Bound of ``clip`` where A < 0, above 1 + eps_high; bound of the weight of ``cispo``."""


PPO_RANGE = ClipRange()


class Surrogate(NamedTuple):
    """Of each token, [N]."""

    loss: Tensor
    too_low: Tensor
    """bool: the ratio is so low that the bound acts."""
    too_high: Tensor
    """bool: the ratio is so high that a bound acts."""


def ppo_clip(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: ClipRange) -> Surrogate:
    """PPO: -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) (arXiv 1707.06347, equation 7).

    eps_high > eps_low is DAPO's (arXiv 2503.14476, equation 10). Where A < 0 nothing above bounds the loss; ratio_max
    does: both dual clip (arXiv 1912.09729) and two-sided clip (arXiv 2505.07291), one and the same function of r.
    """
    unclipped = ratio.clamp(max=bounds.ratio_max) * advantages
    clipped = ratio.clamp(1 - bounds.low, 1 + bounds.high) * advantages
    too_low = (ratio < 1 - bounds.low) & (advantages < 0)
    too_high = torch.where(advantages > 0, ratio > 1 + bounds.high, (ratio > bounds.ratio_max) & (advantages < 0))
    return Surrogate(-torch.minimum(unclipped, clipped), too_low, too_high)


def cispo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: ClipRange) -> Surrogate:
    """MiniMax-M1: -sg(min(r, ratio_max)) A l; every token keeps a gradient (arXiv 2506.13585, equations 4 and 5).

    Without a lower bound, as the paper runs it; its eps_high is ratio_max - 1. eps_low and eps_high have no effect.
    """
    weights = ratio.detach().clamp(max=bounds.ratio_max)
    too_high = ratio > bounds.ratio_max
    return Surrogate(-weights * advantages * logprobs, torch.zeros_like(too_high), too_high)


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, ClipRange], Surrogate]] = {"clip": ppo_clip, "cispo": cispo}
"""Each takes ratios, log-probs and advantages, [N]."""
