"""Scores of how much a completion says, and how often it says the same: in tokens, end of text included."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from relax import checks
from relax.policy_gradient import soft_overlong_penalty


@dataclass(frozen=True)
class TargetLength:
    """-|n - target| / target for n tokens, and never below -1 (after arXiv 2503.04697, there with a learnt target).

    Args:
        target_tokens: The length that costs nothing.
    """

    target_tokens: int

    def __post_init__(self) -> None:
        checks.positive(target_tokens=self.target_tokens)

    def __call__(self, completion: str, completion_ids: Sequence[int]) -> float:
        """The score of one completion."""
        return -min(1.0, abs(len(completion_ids) - self.target_tokens) / self.target_tokens)


@dataclass(frozen=True)
class SoftOverlong:
    """0 up to ``max_tokens - buffer_tokens``, then falling linearly to -1 at ``max_tokens`` (arXiv 2503.14476, eq. 13).

    Args:
        max_tokens: The limit on completions.
        buffer_tokens: The stretch before it in which the score falls; by default a fifth of it, as published.
    """

    max_tokens: int
    buffer_tokens: int | None = None

    def __post_init__(self) -> None:
        checks.positive(max_tokens=self.max_tokens)
        checks.between(1, self.max_tokens, buffer_tokens=self.buffer_tokens)

    def __call__(self, completion: str, completion_ids: Sequence[int]) -> float:
        """The score of one completion."""
        buffer = self.buffer_tokens or max(1, self.max_tokens // 5)
        length = torch.tensor(len(completion_ids), dtype=torch.float64)
        return float(soft_overlong_penalty(length, max_tokens=self.max_tokens, buffer_tokens=buffer))


@dataclass(frozen=True)
class Repetition:
    """-(1 - distinct n-grams / n-grams) over tokens: 0 without repetition, near -1 in a loop (arXiv 2502.03373).

    Args:
        ngram: Tokens that must come again to count as repetition.
    """

    ngram: int = 4

    def __post_init__(self) -> None:
        checks.positive(ngram=self.ngram)

    def __call__(self, completion: str, completion_ids: Sequence[int]) -> float:
        """The score of one completion."""
        ids = tuple(completion_ids)
        grams = [ids[start : start + self.ngram] for start in range(len(ids) - self.ngram + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
