"""A watch over a run in which nothing can be learned: every completion scores the same, or none counts."""

import warnings

from torch import Tensor

from relax.experience import Experience
from relax.policy_gradient import without_variance

FLAT_ITERATIONS = 10
"""After so many iterations without anything to learn from, the user is told."""


class FlatIterations:
    """Counts iterations, one after another, in which no completions that are compared score differently and count."""

    def __init__(self) -> None:
        self.count = 0
        self._always, self._reason = True, ""

    def watch(self, experience: Experience, trained: Tensor, groups: Tensor) -> None:
        """Count this one; warn when there are too many, with the likely reasons.

        Args:
            experience: with ``score``.
            trained: [S], bool: completions that are learned from.
            groups: [S], int64, from 0 on: completions with the same number are compared.
        """
        flat = without_variance(experience.completions["score"], groups)
        left_out = groups[trained].bincount(minlength=len(flat)) == 0
        self.count = self.count + 1 if bool((flat | left_out).all()) else 0
        self._always &= self.count > 0
        if self.count:
            self._reason = _reason(experience, trained)
        if self.count == FLAT_ITERATIONS:
            self._warn("for")

    def finish(self) -> None:
        """A run ends: warn if it was too short for that, and there was nothing to learn in all of it."""
        if self._always and 0 < self.count < FLAT_ITERATIONS:
            self._warn("in all")

    def _warn(self, when: str) -> None:
        number = "iteration" if self.count == 1 else "iterations"
        warnings.warn(f"nothing to learn {when} {self.count} {number}: {self._reason}", stacklevel=5)


def _reason(experience: Experience, trained: Tensor) -> str:
    if not bool(trained.any()):
        return "every completion is cut off, and --mask_truncated leaves those out; raise --max_new_tokens"
    scores = experience.completions["score"]
    cut = float(experience.completions["truncated"].double().mean())
    if bool((scores == scores[0]).all()):
        reason = f"every completion scores {float(scores[0]):g}; the task is solved, too hard, or the reward is wrong"
    else:
        reason = "all completions of a prompt score the same; raise --temperature or --num_generations"
    return reason if cut < 0.5 else f"{reason}; {cut:.0%} are cut off: raise --max_new_tokens"
