"""Advantages and returns from a value function (PPO). Those of a group, without one, are in ``advantages``.

Legend: N tokens of S completions, see ``segments``. V_t is the value before token t is chosen.
"""

import torch
from torch import Tensor

from relax.policy_gradient.segments import Segments


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    segments: Segments,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """d_t = r_t + gamma V_{t+1} - V_t; A_t = d_t + gamma lambda A_{t+1}; R_t = A_t + V_t (arXiv 1506.02438, eq. 16).

    Args:
        rewards: [N], see ``scores.token_rewards``.
        values: [N].
        segments: the completions.
        gamma: discount of rewards.
        lam: lambda, 1 for Monte Carlo returns, 0 for one step.
        last_values: [S], the value after the last token, for a completion that was cut off and would have gone on; 0
            where it is over. Default: all are over, as in RLHF even those cut off are treated.

    Returns:
        Advantages and returns, [N], without gradient.
    """
    rewards, values = rewards.detach(), values.detach()
    after = torch.zeros_like(values) if last_values is None else segments.spread(last_values.detach())
    following = torch.where(segments.last_tokens(), after, values.roll(-1))
    deltas = rewards + gamma * following - values
    advantages = segments.discounted_sums(deltas, gamma * lam)
    return advantages, advantages + values
