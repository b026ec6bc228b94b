"""Each published objective written out with loops over completions and tokens.

Legend: completions y_i with log-probs l (now), old and ref, lists of scalars; A one number a completion.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from policy_tokens import MAX_TOKENS
from torch import Tensor


@dataclass
class Completion:
    now: list[Tensor]
    old: list[float]
    ref: list[float]
    advantage: float

    def ratios(self) -> list[Tensor]:
        return [(now - old).exp() for now, old in zip(self.now, self.old, strict=True)]


def smaller(a: Tensor, b: Tensor) -> Tensor:
    return a if a.item() <= b.item() else b


def clipped(r: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A)."""
    bounded = r if 1 - low <= r.item() <= 1 + high else r.new_tensor(min(max(r.item(), 1 - low), 1 + high))
    return smaller(r * advantage, bounded * advantage)


def mean(x: list[Tensor]) -> Tensor:
    return sum(x, torch.zeros((), dtype=torch.float64)) / len(x)


def total(x: list[Tensor]) -> Tensor:
    return mean(x) * len(x)


def grpo(ys: list[Completion], kl_coef: float = 0.04) -> Tensor:
    """Equations 3 and 4 of arXiv 2402.03300."""

    def kl(now: Tensor, ref: float) -> Tensor:
        return (ref - now).exp() - (ref - now) - 1

    return -mean(
        [
            mean([
                clipped(r, y.advantage, 0.2, 0.2) - kl_coef * kl(now, ref)
                for r, now, ref in zip(y.ratios(), y.now, y.ref, strict=True)
            ])
            for y in ys
        ]
    )  # fmt: skip


def dapo(ys: list[Completion]) -> Tensor:
    """Equation 8 of arXiv 2503.14476."""
    return -mean([clipped(r, y.advantage, 0.2, 0.28) for y in ys for r in y.ratios()])


def dr_grpo(ys: list[Completion]) -> Tensor:
    """arXiv 2503.20783, with the constant that its code divides by."""
    return -mean([total([clipped(r, y.advantage, 0.2, 0.2) for r in y.ratios()]) / MAX_TOKENS for y in ys])


def gspo(ys: list[Completion]) -> Tensor:
    """Equations 5 and 7 of arXiv 2507.18071: a power of the ratio of the completions' probabilities."""
    s = [torch.stack(y.ratios()).prod() ** (1 / len(y.now)) for y in ys]
    return -mean([clipped(s_i, y.advantage, 3e-4, 4e-4) for s_i, y in zip(s, ys, strict=True)])


def cispo(ys: list[Completion]) -> Tensor:
    """Equation 4 of arXiv 2506.13585."""
    return -mean([min(r.item(), 5.0) * y.advantage * now for y in ys for r, now in zip(y.ratios(), y.now, strict=True)])


def rloo(ys: list[Completion]) -> Tensor:
    """A completion is the action of a bandit; PPO's clipped loss of it."""
    return -mean([clipped(torch.stack(y.ratios()).prod(), y.advantage, 0.2, 0.2) for y in ys])


def ppo(ys: list[Completion]) -> Tensor:
    """Equation 7 of arXiv 1707.06347."""
    return -mean([clipped(r, y.advantage, 0.2, 0.2) for y in ys for r in y.ratios()])


LITERAL: dict[str, Callable[[list[Completion]], Tensor]] = {
    "grpo": grpo, "dapo": dapo, "dr_grpo": dr_grpo, "gspo": gspo, "cispo": cispo, "rloo": rloo, "ppo": ppo,
}  # fmt: skip
