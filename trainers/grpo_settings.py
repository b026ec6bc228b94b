"""Settings of the GRPO trainer: a published method, and what is changed of it."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from relax import checks
from relax.errors import UserError
from relax.policy_gradient import ADVANTAGES, PRESETS, Objective

METHOD = (
    *("preset", "advantage", "ratio", "surrogate", "aggregation", "clip_low", "clip_high", "ratio_max"),
    *("kl_coef", "kl_estimator", "entropy_coef", "top_entropy_share"),
)


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
