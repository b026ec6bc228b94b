"""Estimates of KL(policy, reference) from sampled tokens, and the controller of its coefficient.

Legend: N tokens. x = l_ref - l, with l the log-prob of a token that the policy sampled.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def k1(x: Tensor) -> Tensor:
    """-x: unbiased. In a reward only: in a loss the expectation of its gradient is 0."""
    return -x


def k2(x: Tensor) -> Tensor:
    """x^2 / 2: biased, but on policy its gradient is that of the KL divergence."""
    return x.square() / 2


def k3(x: Tensor) -> Tensor:
    """exp(x) - x - 1: unbiased and never negative.

    By ``expm1``: near x = 0, where policies start, fp32 would lose all digits of exp(x) - 1 - x.
    """
    return torch.expm1(x) - x


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Schulman (2020), "Approximating KL divergence". Each takes and returns [N]."""


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: float, num_samples: int) -> float:
    """The next beta: beta (1 + e n / horizon), e = clip(KL / target - 1, -0.2, 0.2) (arXiv 1909.08593).

    Args:
        kl_coef: beta.
        kl: measured, a mean over completions of the sum over their tokens, nats; ``target`` likewise.
        target: the KL to keep.
        horizon: samples in which beta follows by a factor of about e^0.2 at most.
        num_samples: n, completions since the last time.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_samples / horizon)


def update_went_too_far(kl: float, target: float) -> bool:
    """KL > 1.5 target: leave out the rest of an iteration's minibatches (spinningup's and stable-baselines3's PPO).

    Args:
        kl: the mean over tokens of k3 with x = l - l_old, ``old_kl`` of ``policy_loss``, nats.
        target: of a whole iteration, per token.
    """
    return kl > 1.5 * target
