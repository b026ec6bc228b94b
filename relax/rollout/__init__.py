"""Completions sampled from a policy: token ids in, token ids and log-probs out. No text, no rewards, no training."""

from relax.rollout.engine import PolicyEngine
from relax.rollout.protocol import FinishReason, RolloutEngine, Rollouts
from relax.rollout.sampling import Sampling
from relax.rollout.stop_strings import StopStrings

__all__ = ["FinishReason", "PolicyEngine", "RolloutEngine", "Rollouts", "Sampling", "StopStrings"]
