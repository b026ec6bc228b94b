"""The loss of one token, as a function of three figures of its logits. Chunks, sums and gradients: ``logprobs``.

Every loss here depends on the logits through z_y, log Z and the mean of z alone, so its derivative with respect to all
V logits follows from three numbers a token: see ``relax.losses.softmax``.

Legend: n tokens, V vocabulary. z logits, y the target, Z = sum exp(z), -log p(y) = log Z - z_y.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class LogitFigures(NamedTuple):
    """Of each token's logits, [n]."""

    target: Tensor
    """z_y."""
    log_z: Tensor
    """log Z."""
    mean: Tensor
    """Mean over the vocabulary; NaN unless the loss ``uses_mean``, which costs one more pass over the logits."""


def nll(z: LogitFigures) -> Tensor:
    """-log p(y), nats."""
    return z.log_z - z.target


def dft(z: LogitFigures) -> Tensor:
    """-sg(p(y)) log p(y), sg without gradient: dynamic fine-tuning (arXiv 2508.05629)."""
    loss = nll(z)
    return loss * (-loss).exp().detach()


def uniform_nll(z: LogitFigures) -> Tensor:
    """-(1 / V) sum_v log p(v): the nll, were each token of the vocabulary the target with probability 1 / V."""
    return z.log_z - z.mean


def squared_log_z(z: LogitFigures) -> Tensor:
    """log^2 Z, which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5)."""
    return z.log_z.square()


TOKEN_LOSSES: dict[str, Callable[[LogitFigures], Tensor]] = {"nll": nll, "dft": dft}


@dataclass(frozen=True)
class TokenLoss:
    """(1 - e) base + e uniform_nll + c log^2 Z.

    Args:
        base: one of ``TOKEN_LOSSES``, or another function of z_y and log Z.
        label_smoothing: e, the probability spread evenly over the vocabulary (arXiv 1512.00567, section 7).
        z_loss: c, 1e-4 in the PaLM paper.
    """

    base: Callable[[LogitFigures], Tensor] = nll
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    @property
    def uses_mean(self) -> bool:
        """Whether the mean over the vocabulary is needed."""
        return self.label_smoothing != 0

    def __call__(self, z: LogitFigures, /) -> Tensor:
        """[n]."""
        loss = self.base(z)
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform_nll(z)
        return loss + self.z_loss * squared_log_z(z) if self.z_loss else loss


NLL = TokenLoss()
