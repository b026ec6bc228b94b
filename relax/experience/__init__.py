"""What a policy did in one iteration, and the minibatches it learns from it. No model, no rewards, no maths."""

from relax.experience.experience import Experience
from relax.experience.minibatches import ExperienceBatches, Minibatch, Pass, plan_passes

__all__ = ["Experience", "ExperienceBatches", "Minibatch", "Pass", "plan_passes"]
