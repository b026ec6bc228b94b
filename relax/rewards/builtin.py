"""The reward functions that ``--rewards`` knows by name. A class is built with the arguments that were given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relax.rewards.answers import RegexFormat, exact_match, number_match
from relax.rewards.http_endpoint import HttpEndpoint
from relax.rewards.lengths import Repetition, SoftOverlong, TargetLength
from relax.rewards.math_equivalence import MathEquivalence
from relax.rewards.reasoning_tasks import ReasoningGym
from relax.rewards.reward_model import RewardModel


@dataclass(frozen=True)
class BuiltIn:
    """A function, or a class that makes one, and how it is run (see `relax.rewards.evaluation.Reward`)."""

    make: Callable[..., Any]
    time_limit_seconds: float | None = None  # none of those without can hang, or they have limits of their own
    isolated: bool = False
    score_over_limit: float | None = None


BUILT_IN: dict[str, BuiltIn] = {
    "exact": BuiltIn(exact_match),
    "number": BuiltIn(number_match),
    "format": BuiltIn(RegexFormat, time_limit_seconds=10.0, isolated=True, score_over_limit=0.0),
    "math": BuiltIn(MathEquivalence, time_limit_seconds=10.0, isolated=True, score_over_limit=0.0),
    "length": BuiltIn(TargetLength),
    "soft_overlong": BuiltIn(SoftOverlong),
    "repetition": BuiltIn(Repetition),
    "reasoning_gym": BuiltIn(ReasoningGym, time_limit_seconds=10.0, isolated=True, score_over_limit=0.0),
    "model": BuiltIn(RewardModel),
    "http": BuiltIn(HttpEndpoint),
}
