"""What is logged of an iteration's values, returns and advantages."""

from torch import Tensor

from relax.policy_gradient import Moments, explained_variance


def estimate_figures(values: Tensor, returns: Tensor, advantages: Tensor, plain_sums: Tensor) -> dict[str, float]:
    """Of all tokens of an iteration that are learned from; nothing of none.

    Args:
        values: [N], what the critic expected.
        returns: [N], what it is trained on.
        advantages: [N], before whitening.
        plain_sums: [N], discounted sums of the rewards that came, the critic left out (lambda 1).
    """
    if not len(values):
        return {}
    spread = Moments.of(advantages)
    return {
        "value": float(values.mean()),
        "return": float(returns.mean()),
        "advantage_mean": spread.mean,
        "advantage_std": spread.std,
        "explained_variance": explained_variance(Moments.of(returns), Moments.of(returns - values)),
        "explained_variance_mc": explained_variance(Moments.of(plain_sums), Moments.of(plain_sums - values)),
    }
