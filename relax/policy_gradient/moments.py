"""Count, mean and variance of numbers that arrive in parts: over ranks, or over a run. Nothing here asks other ranks.

The parts' centred sums are merged, so that a large mean costs no accuracy, as it would with sums of squares.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of some numbers; plain floats, so a checkpoint can hold them."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """sum (x - mean)^2."""

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Those of the elements of ``x``."""
        if not x.numel():
            return cls()
        x = x.detach()
        mean = x.mean()
        # The mean is rounded, and the sum of the deviations from it is not quite 0: see Chan, Golub, LeVeque (1983).
        deviations = x - mean
        squares = deviations.square().sum() - deviations.sum().square() / x.numel()
        return cls(float(x.numel()), mean.item() + deviations.mean().item(), squares.item())

    @classmethod
    def merged(cls, parts: Iterable["Moments"]) -> "Moments":
        """Those of all numbers together (Chan, Golub, LeVeque 1983)."""
        whole = cls()
        for part in parts:
            if count := whole.count + part.count:
                distance, share = part.mean - whole.mean, part.count / count
                squares = whole.squares + part.squares + distance**2 * whole.count * share
                whole = cls(count, whole.mean + distance * share, squares)
        return whole

    @property
    def variance(self) -> float:
        """Squares over count; 0 of nothing."""
        return self.squares / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """With Bessel's correction; 0 of fewer than two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


def whitened(x: Tensor, moments: Moments, *, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / (std + epsilon), ``moments`` being those of the whole batch, over all ranks (arXiv 2403.17031)."""
    return (x - moments.mean) / (moments.std + epsilon)


def explained_variance(returns: Moments, residuals: Moments) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant one, negative for a worse; NaN if R is so.

    Args:
        returns: moments of R.
        residuals: moments of R - V.
    """
    return 1 - residuals.variance / returns.variance if returns.variance else math.nan


def normalized(scores: Tensor, running: Moments, *, clip: float | None = None) -> Tensor:
    """(R - mean) / std with the ``running`` moments of all scores of the run, then cut to +-clip (arXiv 2307.04964).

    As they are, minus the mean, while no two scores have differed.
    """
    scores = (scores - running.mean) / (running.std or 1.0)
    return scores if clip is None else torch.clamp(scores, -clip, clip)
