"""How well a policy answers held-out prompts: greedy accuracy, mean rewards, pass@k. No training, no Lightning."""

from relax.evaluation.exam import Exam
from relax.evaluation.pass_at_k import pass_at_k

__all__ = ["Exam", "pass_at_k"]
