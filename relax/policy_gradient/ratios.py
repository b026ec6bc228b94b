"""How much likelier what was sampled has become: r = pi / pi_old, of a token or of its whole completion.

Legend: N tokens of S completions, see ``segments``. l - l_old is the log-ratio of a token.
"""

from collections.abc import Callable

from torch import Tensor

from relax.policy_gradient.segments import Segments

MAX_LOG_RATIO = 20.0
"""Where exp is capped: a ratio of 5e8 is far outside any clip range, and infinity times an advantage of 0 is NaN."""


def token_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """PPO: r_t = exp(l - l_old) (arXiv 1707.06347)."""
    return _exp(log_ratio)


def sequence_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """GSPO: s = exp(mean_t (l - l_old)), the same at all tokens of a completion (arXiv 2507.18071, equation 7)."""
    return segments.spread(_exp(segments.means(log_ratio)))


def completion_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """exp(sum_t (l - l_old)), the ratio of the probabilities of whole completions, the same at all tokens of one.

    For RLOO, to which a completion is one action (arXiv 2402.14740).
    """
    return segments.spread(_exp(segments.sums(log_ratio)))


RATIOS: dict[str, Callable[[Tensor, Segments], Tensor]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
    "completion": completion_ratio,
}
"""Each takes log-ratios [N] and returns ratios [N]."""


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()
