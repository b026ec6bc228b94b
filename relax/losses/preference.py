"""Losses of preference pairs, and how well their scores are calibrated: pure functions of scores.

Legend: P pairs; d = score of the chosen answer - score of the rejected one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CALIBRATION_BINS = 10


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margins: Tensor, centering_coef: float = 0.0) -> Tensor:
    """[P]: -log sigmoid(d - margin) + centering_coef x (chosen + rejected)^2.

    The first part is the likelihood of the preferences (Bradley and Terry 1952; arXiv 2203.02155, equation 1), its
    margin that of arXiv 2307.09288, equation 2; the second keeps scores near 0, which pairs alone leave undetermined
    (arXiv 2312.09244, equation 5).

    Args:
        chosen: [P], scores.
        rejected: [P].
        margins: [P], by how much the one should exceed the other.
        centering_coef: 0 leaves the second part out.
    """
    losses = -F.logsigmoid(chosen - rejected - margins)
    return losses + centering_coef * (chosen + rejected).square() if centering_coef else losses


def wins(differences: Tensor) -> Tensor:
    """[P]: 1 where the chosen answer scores higher, 1/2 at a tie."""
    return (differences.sign() + 1) / 2


def calibration_gaps(differences: Tensor, weights: Tensor) -> Tensor:
    """[bins]: the sum over the pairs of a bin of weight x (was right - confidence); linear, so that parts add up.

    sigmoid(d) says how sure the model is that the chosen answer is the better one. Its confidence is that of the answer
    that it favours, max(sigmoid(d), sigmoid(-d)), between 1/2 and 1 and cut into bins of equal width.
    """
    confidence = differences.abs().sigmoid()
    bins = ((confidence - 0.5) * 2 * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = weights * (wins(differences) - confidence)
    return torch.zeros(CALIBRATION_BINS, dtype=gaps.dtype, device=gaps.device).index_add(0, bins, gaps)


def calibration_error(gaps: Tensor) -> Tensor:
    """The expected calibration error (arXiv 1706.04599, equation 3), from the gaps of all pairs, weights in sum 1."""
    return gaps.abs().sum()
