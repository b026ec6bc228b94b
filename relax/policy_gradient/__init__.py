"""The maths of policy optimization, for PPO and GRPO: pure functions of tensors, variants in dict literals."""

from relax.policy_gradient.advantages import ADVANTAGES, group_advantages, without_variance
from relax.policy_gradient.aggregation import AGGREGATIONS, StepTotals, token_mean
from relax.policy_gradient.entropy import top_entropy_threshold
from relax.policy_gradient.gae import generalized_advantages
from relax.policy_gradient.kl import KL_ESTIMATORS, adapted_kl_coef, update_went_too_far
from relax.policy_gradient.moments import Moments, explained_variance, normalized, whitened
from relax.policy_gradient.objective import Objective, PolicyLoss, PolicyTokens, logprob_weights, policy_loss
from relax.policy_gradient.presets import PPO_OBJECTIVE, PRESETS, Preset
from relax.policy_gradient.ratios import RATIOS
from relax.policy_gradient.scores import (
    penalized_scores,
    soft_overlong_penalty,
    token_rewards,
    without_end_penalized,
)
from relax.policy_gradient.segments import Segments
from relax.policy_gradient.surrogates import SURROGATES, ClipRange
from relax.policy_gradient.values import value_loss

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "KL_ESTIMATORS",
    "PPO_OBJECTIVE",
    "PRESETS",
    "RATIOS",
    "SURROGATES",
    "ClipRange",
    "Moments",
    "Objective",
    "PolicyLoss",
    "PolicyTokens",
    "Preset",
    "Segments",
    "StepTotals",
    "adapted_kl_coef",
    "explained_variance",
    "generalized_advantages",
    "group_advantages",
    "logprob_weights",
    "normalized",
    "penalized_scores",
    "policy_loss",
    "soft_overlong_penalty",
    "token_mean",
    "token_rewards",
    "top_entropy_threshold",
    "update_went_too_far",
    "value_loss",
    "whitened",
    "without_end_penalized",
    "without_variance",
]
