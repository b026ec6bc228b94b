"""The published methods by name: which advantage, and which objective."""

from typing import NamedTuple

from relax.policy_gradient.objective import Objective
from relax.policy_gradient.surrogates import ClipRange


class Preset(NamedTuple):
    """A method without a value function."""

    advantage: str
    """A key of ``ADVANTAGES``."""
    objective: Objective


PRESETS: dict[str, Preset] = {
    # arXiv 2402.03300
    "grpo": Preset("group_std", Objective(aggregation="sequence_mean", kl_coef=0.04)),
    # arXiv 2503.14476; its sampling and its length penalty are no parts of the loss
    "dapo": Preset("group_std", Objective(clip=ClipRange(high=0.28))),
    # arXiv 2503.20783
    "dr_grpo": Preset("group_mean", Objective(aggregation="fixed_length_mean")),
    # arXiv 2507.18071, section 5.1
    "gspo": Preset(
        "group_std", Objective(ratio="sequence", aggregation="sequence_mean", clip=ClipRange(low=3e-4, high=4e-4))
    ),
    # arXiv 2506.13585, with the bound of arXiv 2510.13786: the first does not tell its own
    "cispo": Preset("group_std", Objective(surrogate="cispo", clip=ClipRange(ratio_max=5.0))),
    # arXiv 2402.14740. A completion is one action; clipped as PPO for more than one pass over it, as TRL does
    "rloo": Preset(
        "leave_one_out",
        Objective(ratio="completion", aggregation="sequence_mean", kl_coef=0.05, kl_estimator="k1", kl_in_reward=True),
    ),
}

PPO_OBJECTIVE = Objective(kl_coef=0.05, kl_estimator="k1", kl_in_reward=True)
"""Of PPO for language models (arXiv 1909.08593, 1707.06347), with advantages from ``gae``."""
