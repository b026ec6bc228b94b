"""Settings of the PPO trainer: which values cannot work, and what is built from them."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from relax import checks
from relax.critic import CRITICS
from relax.errors import UserError
from relax.policy_gradient import ClipRange, Objective

OBJECTIVE = (
    *("kl_coef", "kl_in_loss", "kl_estimator", "clip_low", "clip_high", "ratio_max", "aggregation", "entropy_coef"),
)
ESTIMATE = (
    *("gamma", "gae_lambda", "bootstrap_truncated", "whiten_advantages"),
    *("missing_eos_penalty", "reward_clip", "normalize_rewards"),
)
CRITIC = ("critic", "critic_learning_rate", "critic_warmup_steps", "value_clip", "value_coef")


def build_objective(own: Mapping[str, Any]) -> Objective:
    """What the policy minimises; where it is in the rewards, the KL penalty is estimated by k1, in the loss by k3.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    ratio_max = math.inf if own["ratio_max"] is None else own["ratio_max"]
    return Objective(
        aggregation=own["aggregation"],
        clip=ClipRange(own["clip_low"], own["clip_high"], ratio_max),
        kl_coef=own["kl_coef"],
        kl_estimator=own["kl_estimator"] or ("k3" if own["kl_in_loss"] else "k1"),
        kl_in_reward=not own["kl_in_loss"],
        entropy_coef=own["entropy_coef"],
    )


def check_ppo(own: Mapping[str, Any]) -> Objective:
    """As ``build_objective``, for all keywords of ``RLTrainer``, defaults included.

    Raises:
        UserError: a value that cannot be.
    """
    if own["critic"] is not None:
        checks.one_of(CRITICS, critic=own["critic"])
    checks.between(0, 1, gamma=own["gamma"], gae_lambda=own["gae_lambda"])
    checks.between(0, math.inf, value_coef=own["value_coef"], missing_eos_penalty=own["missing_eos_penalty"])
    checks.between(0, 10**9, critic_warmup_steps=own["critic_warmup_steps"])
    names = ("critic_learning_rate", "value_clip", "reward_clip", "target_kl")
    checks.positive(**{name: own[name] for name in names})
    if own["value_coef"] == 0:
        raise UserError(
            "--value_coef must be above 0, got 0: the critic would learn nothing; use run_grpo.py without one"
        )
    return build_objective(own)


def warn_without_effect(own: Mapping[str, Any], others: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Tell of settings that change nothing.

    Args:
        own: keywords of ``RLTrainer``.
        others: further ones.
        defaults: of ``own``.
    """
    idle = []
    if not own["kl_coef"]:
        idle += [(name, "--kl_coef=0") for name in ("kl_estimator", "kl_in_loss")]
    if others.get("mask_truncated"):
        idle += [(name, "--mask_truncated") for name in ("missing_eos_penalty", "bootstrap_truncated")]
    if others["num_iterations"] == others.get("steps_per_generation", 1) == 1:  # which the policy that sampled makes
        cause = "a single optimizer step an iteration (--num_iterations, --steps_per_generation)"
        idle += [(name, cause) for name in ("target_kl", "ratio_max", "clip_low", "clip_high", "value_clip")]
    for name, cause in idle:
        if own[name] != defaults[name]:
            warnings.warn(f"--{name}={own[name]} has no effect with {cause}", stacklevel=3)


def warn_of_an_endless_warm_up(warm_up: int, steps: float) -> None:
    """When the run begins: it ends before the policy learns anything.

    Args:
        warm_up: optimizer steps in which only the critic learns.
        steps: of the run.
    """
    if warm_up >= steps:
        warnings.warn(
            f"the policy learns nothing: --critic_warmup_steps={warm_up}, and the run ends at step {steps}",
            stacklevel=3,
        )
