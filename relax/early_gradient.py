"""A loss whose gradient is computed at once: what its forward pass kept is free before the next one begins.

Where one step sums the losses of two models, each with activations of its own, a single backward pass at the end would
need the memory of both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def formed_now(loss: Tensor, parameters: Sequence[nn.Parameter], *, slope: float) -> Tensor:
    """The value of ``loss``; its gradient in ``parameters``, computed now, is handed out when backward comes by.

    So hooks on parameters (DDP's) run when they always do. Not for fp16, whose loss is scaled up to keep small
    gradients alive: here it would be scaled too late.

    Args:
        loss: a scalar.
        parameters: all that it depends on.
        slope: that backward will bring, 1 / accumulation steps. It may bring another; but models round inside (norms in
            fp32), and with this one the gradient is to the last bit what it would be without this function.
    """
    with torch.autocast(loss.device.type, enabled=False):  # as for any backward pass
        gradients = torch.autograd.grad(loss * slope, parameters, allow_unused=True)
    handed_out: Tensor = _HandedOut.apply(loss.detach(), gradients, slope, *parameters)
    return handed_out


class _HandedOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], slope: float, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.gradients, ctx.slope = gradients, slope  # not as saved tensors: nobody else has them, so they may change
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, ()
        rest = slope / ctx.slope
        return None, None, None, *(None if g is None else g.mul_(rest) for g in gradients)
