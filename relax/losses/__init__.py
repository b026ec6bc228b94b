"""The maths over tokens: pure functions of tensors."""

from relax.losses.logprobs import TokenStatistics, token_logprobs, weighted_logprob_sum

__all__ = ["TokenStatistics", "token_logprobs", "weighted_logprob_sum"]
