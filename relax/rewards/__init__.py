"""Scores for completions: built-in functions by name, the user's own, and several of them with weights.

``build_rewards("math:1.0,format:0.2").score(samples)``; how a function asks for what it scores is in
``relax.rewards.binding``, how ``--rewards`` is written in ``relax.rewards.specs``. Knows neither policy nor trainer.
"""

from relax.rewards.mixture import Rewards, Scores, build_rewards
from relax.rewards.reasoning_tasks import task_rows
from relax.rewards.samples import RewardFailed, Sample

__all__ = ["RewardFailed", "Rewards", "Sample", "Scores", "build_rewards", "task_rows"]
