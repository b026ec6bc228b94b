"""Which tokens decide: those where the policy was unsure (arXiv 2506.01939)."""

import torch
from torch import Tensor


def top_entropy_threshold(entropies: Tensor, share: float) -> Tensor:
    """The entropy that ``share`` of the tokens reach, a scalar: train on tokens with at least that.

    The (1 - share) quantile, linearly interpolated. Denominators stay those of all tokens.

    Args:
        entropies: [N], nats, of all tokens of an optimizer step, or the mask depends on how the step is cut.
        share: above 0, at most 1; 0.2 in the paper.
    """
    if not len(entropies):
        return entropies.new_zeros(())
    ordered = entropies.detach().sort().values  # torch.quantile takes 2^24 elements at most
    place = (1 - share) * (len(ordered) - 1)
    below = int(place)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below)
