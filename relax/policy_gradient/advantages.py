"""How much better a completion is than the others of its prompt. Advantages from a value function are in ``gae``.

Scores are Python numbers at first, and few: keep them on the CPU, where the sums are the same bits each time.

Legend: S completions of the whole iteration, over all ranks; R their scores; g the completions of one prompt.
"""

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it."""


def group_advantages(name: str, scores: Tensor, groups: Tensor) -> Tensor:
    """Those of ``ADVANTAGES[name]``, [S]; 0 for a completion without score, which is no part of its group.

    Args:
        name: a key of ``ADVANTAGES``.
        scores: [S], NaN where no reward function applies.
        groups: [S], integers: the prompt of each completion, in any order; groups may differ in size.
    """
    scored = ~scores.isnan()
    numbers = torch.unique(groups[scored], return_inverse=True)[1]
    advantages = torch.zeros_like(scores)
    advantages[scored] = ADVANTAGES[name](scores[scored], numbers)
    return advantages


def group_std(scores: Tensor, numbers: Tensor) -> Tensor:
    """(R - mean_g R) / (std_g R + 1e-4): GRPO (arXiv 2402.03300, section 4.1.2), the std with Bessel's correction."""
    deviation = group_mean(scores, numbers)
    variance = _sums(deviation.square(), numbers) / (_counts(numbers) - 1).clamp(min=1)
    return deviation / (variance.sqrt()[numbers] + EPSILON)


def group_mean(scores: Tensor, numbers: Tensor) -> Tensor:
    """R - mean_g R: Dr. GRPO (arXiv 2503.20783).

    Of equal scores exactly 0. The fp32 mean of eight times 0.9 is not 0.9, and what is left, over a std of nearly 0,
    would train on noise: so the smallest score of the group is taken off first.
    """
    smallest = scores.new_full((_num_groups(numbers),), torch.inf).scatter_reduce(0, numbers, scores, "amin")
    above = scores - smallest[numbers]
    return above - (_sums(above, numbers) / _counts(numbers))[numbers]


def batch_std(scores: Tensor, numbers: Tensor) -> Tensor:
    """(R - mean_g R) / (std R + 1e-4), the std over all completions (arXiv 2508.08221)."""
    std = scores.std(correction=min(1, len(scores) - 1)) if len(scores) else scores.new_zeros(())
    return group_mean(scores, numbers) / (std + EPSILON)


def leave_one_out(scores: Tensor, numbers: Tensor) -> Tensor:
    """R_i - the mean of the others of g, which is (R_i - mean_g R) G / (G - 1): RLOO (arXiv 2402.14740).

    0 in a group of one, which has nothing to compare with.
    """
    sizes = _counts(numbers).to(scores.dtype)  # the quotient of two integers would be fp32
    return group_mean(scores, numbers) * (sizes / (sizes - 1).clamp(min=1))[numbers]


ADVANTAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "batch_std": batch_std,
    "leave_one_out": leave_one_out,
}
"""Each takes finite scores [S] and the number of each one's group, [S], without gaps from 0; and returns [S]."""


def without_variance(scores: Tensor, groups: Tensor) -> Tensor:
    """[K], bool: of each prompt, ascending by its number in ``groups``: its scores are equal, nothing can be learned.

    Arguments are those of ``group_advantages``. Completions without score do not count; a prompt that has only such, or
    a single other, is without variance too.
    """
    prompts, numbers = torch.unique(groups, return_inverse=True)
    low = scores.new_full((len(prompts),), torch.inf).scatter_reduce(0, numbers, scores.nan_to_num(torch.inf), "amin")
    high = scores.new_full((len(prompts),), -torch.inf).scatter_reduce(
        0, numbers, scores.nan_to_num(-torch.inf), "amax"
    )
    return low >= high


def _num_groups(numbers: Tensor) -> int:
    return int(numbers.max()) + 1 if len(numbers) else 0


def _sums(x: Tensor, numbers: Tensor) -> Tensor:
    return x.new_zeros(_num_groups(numbers)).index_add(0, numbers, x)


def _counts(numbers: Tensor) -> Tensor:
    return torch.bincount(numbers)
