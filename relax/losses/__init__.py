"""The maths over tokens: pure functions of tensors."""

from relax.losses.logprobs import TokenStatistics, token_logprobs, weighted_logprob_sum, weighted_loss_sum
from relax.losses.router import balance_losses
from relax.losses.token_losses import NLL, TOKEN_LOSSES, TokenLoss

__all__ = [
    "NLL",
    "TOKEN_LOSSES",
    "TokenLoss",
    "TokenStatistics",
    "balance_losses",
    "token_logprobs",
    "weighted_logprob_sum",
    "weighted_loss_sum",
]
