"""The chance that one of k answers is right, estimated from more than k of them."""

import math

from relax.errors import UserError


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the share of the k-subsets of n answers, c of them right, that hold a right one.

    Unbiased, unlike 1 - (1 - c/n)^k; and exact but for one rounding. Chen et al. 2021, arXiv 2107.03374, equation 1.

    Args:
        num_samples: n, answers that were sampled.
        num_right: c, of them right.
        k: answers that are allowed.

    Raises:
        UserError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 1 <= k <= num_samples:
        raise UserError(f"k of pass@k must lie between 1 and the number of samples, {num_samples}, got {k}")
    if not 0 <= num_right <= num_samples:
        raise UserError(f"right answers must be between 0 and all {num_samples}, got {num_right}")
    subsets = math.comb(num_samples, k)
    return (subsets - math.comb(num_samples - num_right, k)) / subsets
