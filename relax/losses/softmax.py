"""The softmax of a chunk of logits, and derivatives with respect to the logits, in place: memory and time go here.

Legend: n tokens of a chunk, V vocabulary. z logits, p = softmax(z), y the target, Z = sum exp(z).

    dz_y/dz = onehot(y)     dlogZ/dz = p     dmean(z)/dz = 1 / V
    H = log Z - sum(p z)    dH/dz = -p (z - log Z + H)
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relax.losses.token_losses import NLL, LogitFigures, TokenLoss


class Chunk(NamedTuple):
    """Of each token, on the distribution softmax(logits / temperature)."""

    softmax: Tensor
    """[n, V], in a buffer that the next chunk overwrites."""
    figures: LogitFigures
    entropy: Tensor
    """[n], nats."""
    correct: Tensor
    """[n], bool: no token is more likely than the target."""


class Softmax:
    """Softmax and figures of each row of logits [n, V], always into the same buffer: fresh memory costs page faults."""

    def __init__(self, temperature: float = 1.0, compiled: bool = False, with_mean: bool = False) -> None:
        self.temperature, self.with_mean = temperature, with_mean
        self.function = _compile(_softmax) if compiled else _softmax
        self.buffer: Tensor | None = None

    def __call__(self, z: Tensor, targets: Tensor) -> Chunk:
        """``z`` [n, V] is overwritten; ``targets`` [n]."""
        if self.buffer is None:  # the first chunk is the largest
            self.buffer = torch.empty_like(z)
        p, *figures, entropy, correct = self.function(
            z, targets, self.temperature, self.with_mean, self.buffer[: len(z)]
        )
        return Chunk(p, LogitFigures(*figures), entropy, correct)


def _softmax(z: Tensor, targets: Tensor, temperature: float, with_mean: bool, out: Tensor) -> tuple[Tensor, ...]:
    if temperature != 1.0:
        z = z.div_(temperature)
    top = z.amax(-1)
    target = z.gather(-1, targets[:, None]).squeeze(-1)
    mean = z.mean(-1) if with_mean else torch.full_like(top, torch.nan)
    p = torch.softmax(z, -1, out=out)
    log_z = top - p.amax(-1).log()  # the likeliest token has p >= 1 / V: no log of an underflow
    entropy = log_z - z.mul_(p).sum(-1)
    return p, target, log_z, mean, entropy, target == top


class FigureSlopes(NamedTuple):
    """The derivative with respect to each of ``LogitFigures``, [n]."""

    target: Tensor
    log_z: Tensor
    mean: Tensor | None = None
    """None: no part of the loss."""


def loss_slopes(loss: TokenLoss, figures: LogitFigures, upstream: Tensor) -> FigureSlopes:
    """Those of sum(upstream loss), by autograd on 3 n numbers."""
    upstream = upstream.to(figures.target.dtype)
    if loss == NLL:  # known by heart: a tenth of a millisecond less for the chunk of every plain run
        return FigureSlopes(target=-upstream, log_z=upstream)
    inputs = LogitFigures(*(x.detach().requires_grad_() for x in figures))
    used = inputs if loss.uses_mean else inputs[:2]
    with torch.enable_grad():
        return FigureSlopes(*torch.autograd.grad(loss(inputs), used, upstream, materialize_grads=True))


def logit_slope_(p: Tensor, targets: Tensor, slopes: FigureSlopes) -> Tensor:
    """The derivative with respect to the logits, [n, V], in the place of p."""
    slope = p.mul_(slopes.log_z[:, None])
    if slopes.mean is not None:
        slope.add_(slopes.mean[:, None] / slope.shape[-1])
    return slope.scatter_add_(-1, targets[:, None], slopes.target[:, None])


def entropy_slope_(z: Tensor, p: Tensor, log_z: Tensor, entropy: Tensor, upstream: Tensor) -> Tensor:
    """-upstream p (z - log Z + H), [n, V], in the place of z."""
    return z.sub_((log_z - entropy)[:, None]).mul_(p).mul_(-upstream[:, None])


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
