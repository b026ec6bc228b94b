"""From scores of completions to rewards of tokens, and the penalties on a completion's length and end.

Legend: N tokens of S completions, see ``segments``.
"""

import torch
from torch import Tensor

from relax.policy_gradient.segments import Segments


def token_rewards(scores: Tensor, kl: Tensor, segments: Segments, kl_coef: float) -> Tensor:
    """-beta KL_t on each token, plus the score on the last one of a completion, [N] (arXiv 1909.08593, equation 2).

    Args:
        scores: [S].
        kl: [N], by one of ``KL_ESTIMATORS``; k1 in the paper.
        segments: the completions; the score of one without tokens is lost.
        kl_coef: beta.
    """
    return torch.where(segments.last_tokens(), segments.spread(scores), 0) - kl_coef * kl


def penalized_scores(scores: Tensor, kl: Tensor, segments: Segments, kl_coef: float) -> Tensor:
    """R - beta sum_t KL_t, [S]: the KL penalty of methods that score a completion as a whole, such as RLOO.

    Arguments are those of ``token_rewards``, of whose result it is the sum (arXiv 2402.14740).
    """
    return scores - kl_coef * segments.sums(kl)


def without_end_penalized(scores: Tensor, truncated: Tensor, penalty: float) -> Tensor:
    """``scores`` [S], less ``penalty`` where no end of text came: ``truncated`` [S], bool (arXiv 2403.17031)."""
    return scores - penalty * truncated


def soft_overlong_penalty(lengths: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """0 while buffer_tokens are left, then falling evenly to -1 at max_tokens, [S] (arXiv 2503.14476, equation 13).

    To be added to the scores.

    Args:
        lengths: [S], tokens of each completion.
        max_tokens: the most a completion may have.
        buffer_tokens: tokens before that in which the penalty grows; at least 1.
    """
    return ((max_tokens - buffer_tokens - lengths) / buffer_tokens).clamp(-1, 0)
