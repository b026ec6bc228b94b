"""Settings of the GRPO trainer: a published method, and what is changed of it."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from relax import checks
from relax.errors import UserError
from relax.experience import Experience
from relax.policy_gradient import ADVANTAGES, PRESETS, Objective, without_variance

METHOD = (
    *("preset", "advantage", "ratio", "surrogate", "aggregation", "clip_low", "clip_high", "ratio_max"),
    *("kl_coef", "kl_estimator", "entropy_coef", "top_entropy_share"),
)
FLAT_ITERATIONS = 10
"""After so many iterations without anything to learn from, the user is told."""


def build_method(method: Mapping[str, Any]) -> tuple[str, Objective]:
    """The advantage and the objective: the preset's, with what is not None in place of its parts.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    checks.one_of(PRESETS, preset=method["preset"])
    preset = PRESETS[method["preset"]]
    advantage = method["advantage"] or preset.advantage
    checks.one_of(ADVANTAGES, advantage=advantage)
    bounds = {"low": "clip_low", "high": "clip_high", "ratio_max": "ratio_max"}
    clip = preset.objective.clip._replace(**{k: method[v] for k, v in bounds.items() if method[v] is not None})
    parts = {name: method[name] for name in ("ratio", "surrogate", "aggregation", "kl_coef", "kl_estimator")}
    changed = {name: value for name, value in parts.items() if value is not None}
    return advantage, replace(preset.objective, clip=clip, entropy_coef=method["entropy_coef"], **changed)


def check_method(own: Mapping[str, Any], num_generations: int | None) -> tuple[str, Objective]:
    """As ``build_method``, for the keywords of ``GRPOTrainer``.

    Raises:
        UserError: a value that cannot be, or groups of one.
    """
    advantage, objective = build_method(own)
    checks.positive(max_sampling_rounds=own["max_sampling_rounds"])
    checks.between(0, 1, top_entropy_share=own["top_entropy_share"])
    if own["top_entropy_share"] == 0:
        raise UserError("--top_entropy_share must be above 0, got 0; drop it to learn from every token")
    if num_generations is not None and num_generations < 2:
        raise UserError(
            f"--num_generations must be at least 2, got {num_generations}: a completion is compared with others of its "
            "prompt"
        )
    return advantage, objective


def warn_without_effect(own: Mapping[str, Any], objective: Objective) -> None:
    """Tell of keywords that need another one."""
    given = [f"--{name}" for name in ("clip_low", "clip_high") if own[name] is not None]
    if objective.surrogate == "cispo" and given:
        warnings.warn(f"{', '.join(given)}: no effect with cispo, whose bound is --ratio_max", stacklevel=3)
    if own["kl_estimator"] is not None and not objective.kl_coef:
        warnings.warn(f"--kl_estimator={own['kl_estimator']} has no effect without --kl_coef", stacklevel=3)
    if own["max_sampling_rounds"] != 4 and not own["dynamic_sampling"]:
        warnings.warn("--max_sampling_rounds has no effect without --dynamic_sampling", stacklevel=3)


class FlatIterations:
    """Counts iterations, one after another, in which no prompt has completions that score differently and count."""

    def __init__(self) -> None:
        self.count = 0
        self._always, self._reason = True, ""

    def watch(self, experience: Experience, trained: Tensor) -> None:
        """Count this one; warn when there are too many, with the likely reasons.

        Args:
            experience: with ``score``.
            trained: [S], bool: completions that are learned from.
        """
        flat = without_variance(experience.completions["score"], experience.groups)
        left_out = ~trained.view(-1, experience.num_samples).any(1)
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
