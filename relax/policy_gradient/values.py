"""The loss of a value function (PPO), token by token; put together by ``aggregation``.

Legend: N tokens. V the value now, V_old when the tokens were sampled, R the return.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ValueLoss(NamedTuple):
    """Of each token, [N]."""

    loss: Tensor
    clipped: Tensor
    """bool: the bound acts, no gradient passes."""


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = 0.2) -> ValueLoss:
    """1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) (arXiv 2403.17031); without clip 1/2 (V - R)^2.

    Args:
        values: V, [N], with gradient.
        old_values: V_old, [N].
        returns: R, [N].
        clip: c, or None.
    """
    error = (values - returns).square()
    if clip is None:
        return ValueLoss(error / 2, torch.zeros_like(error, dtype=torch.bool))
    bounded = torch.clamp(values, old_values - clip, old_values + clip)
    bounded_error = (bounded - returns).square()
    return ValueLoss(torch.maximum(error, bounded_error) / 2, bounded_error > error)
