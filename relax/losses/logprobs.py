"""Log-probs and losses of given tokens from hidden states, in chunks: the full N x V logits never exist.

One path for SFT, PPO, GRPO and the reference model. The head and its derivative are ``relax.losses.heads``', the
softmax and its derivative ``relax.losses.softmax``', the losses of a token ``relax.losses.token_losses``'.

Legend: N token positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from relax.losses.heads import Head, chunked_head
from relax.losses.softmax import FigureSlopes, Softmax, entropy_slope_, logit_slope_, loss_slopes
from relax.losses.token_losses import NLL, TokenLoss

CHUNK_ROWS = 256
CHUNK_ROWS_CUDA = 2048
"""Rows whose logits exist at one time, and once more as their softmax.

Each chunk adds to the gradient of the head's weights, a pass over V x D: with 256 rows a twelfth of the chunk's matrix
products on a CPU. A GPU multiplies some ten times faster for the memory it has. 256 rows of a small vocabulary still
lie in a cache.
"""


class TokenStatistics(NamedTuple):
    """Of each target token, on the distribution softmax(logits / temperature)."""

    logprobs: Tensor
    """[N], natural logarithm."""
    entropy: Tensor
    """[N], nats, of the whole distribution."""
    correct: Tensor
    """[N], bool: no token is more likely than the target."""


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float = 1.0, compiled: bool = False
) -> TokenStatistics:
    """Log softmax(head(hidden) / temperature)[target], differentiable in the log-probs and in the entropy.

    The backward pass computes each chunk's logits a second time. Where the loss is a weighted sum of log-probs whose
    weights are known in advance, ``weighted_logprob_sum`` saves that.

    Args:
        hidden: [N, D], the states that predict ``targets``.
        head: hidden states to logits.
        targets: [N], token ids.
        temperature: divides the logits.
        compiled: fuse the softmax with ``torch.compile``.
    """
    options = _Options(head, temperature, compiled, torch.is_grad_enabled())
    outputs = _TokenLogprobs.apply(options, targets, None, hidden, *_trainable(head))
    return TokenStatistics(*outputs[1:])


def weighted_logprob_sum(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    compiled: bool = False,
) -> tuple[Tensor, TokenStatistics]:
    """sum_i weights_i l_i, its gradient formed in the forward pass: ``weighted_loss_sum`` of the negative log-prob.

    Args:
        hidden: [N, D]; head, targets, temperature, compiled: as for ``token_logprobs``.
        weights: [N], constants; no gradient reaches them.

    Returns:
        The sum (a scalar) and the detached statistics.
    """
    total, statistics = weighted_loss_sum(hidden, head, targets, weights, temperature=temperature, compiled=compiled)
    return -total, statistics


def weighted_loss_sum(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor,
    token_loss: TokenLoss = NLL,
    *,
    temperature: float = 1.0,
    compiled: bool = False,
) -> tuple[Tensor, TokenStatistics]:
    """sum_i weights_i loss_i, its gradient formed in the forward pass: the logits are computed once.

    Args:
        hidden: [N, D]; head, targets, temperature, compiled: as for ``token_logprobs``.
        weights: [N], constants; no gradient reaches them.
        token_loss: of each token, from the figures of its logits / temperature.

    Returns:
        The sum (a scalar) and the detached statistics.
    """
    options = _Options(head, temperature, compiled, torch.is_grad_enabled(), token_loss)
    # The gradient is formed before a loss scaler can act: weights near 1 keep it within the range of half precision.
    scale = weights.abs().amax().clamp_min(torch.finfo(weights.dtype).tiny) if len(weights) else weights.new_ones(())
    outputs = _TokenLogprobs.apply(options, targets, weights / scale, hidden, *_trainable(head))
    return outputs[0] * scale, TokenStatistics(*(x.detach() for x in outputs[1:]))


class _Options(NamedTuple):
    head: Head
    temperature: float
    compiled: bool
    grad: bool
    token_loss: TokenLoss = NLL


class _TokenLogprobs(torch.autograd.Function):
    """With ``weights`` the gradient is formed in forward, without them chunk by chunk in backward."""

    @staticmethod
    def forward(
        ctx: Any, options: _Options, targets: Tensor, weights: Tensor | None, hidden: Tensor, *parameters: nn.Parameter
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needed = ctx.needs_input_grad[3:]
        form = weights is not None and options.grad and any(needed)  # needs_input_grad knows nothing of no_grad
        head = chunked_head(options.head, hidden, parameters, needed if form else [False] * len(needed))
        softmax = Softmax(options.temperature, options.compiled, with_mean=options.token_loss.uses_mean)
        chunks: list[tuple[Tensor, ...]] = []
        for rows in _chunks(hidden):
            p, figures, *statistics = softmax(head.logits(rows), targets[rows])
            chunks.append((options.token_loss(figures), figures.target - figures.log_z, *statistics))
            if form:
                assert weights is not None
                slopes = loss_slopes(options.token_loss, figures, weights[rows] / options.temperature)
                head.add(rows, logit_slope_(p, targets[rows], slopes))
        losses, *outputs = (torch.cat(parts) for parts in zip(*chunks, strict=True)) if chunks else _nothing(hidden)
        total = (weights * losses).sum() if weights is not None else losses.new_zeros(())
        logprobs, entropy, correct = outputs
        ctx.mark_non_differentiable(correct)
        ctx.options, ctx.autocast = options, _autocast(hidden.device.type)
        # Not as saved tensors: these are handed out as they are, and autograd would copy what it still holds.
        ctx.gradients = head.gradients() if form else None
        if not form:
            ctx.save_for_backward(targets, hidden, *parameters)
        return total, logprobs, entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        total_slope, logprob_slope, entropy_slope, _ = slopes
        if ctx.gradients is None:
            with torch.autocast(**ctx.autocast):  # that of the forward pass, over by now
                gradients = _recomputed(ctx, logprob_slope, entropy_slope)
        else:
            gradients, ctx.gradients = [x.mul_(total_slope) for x in ctx.gradients], []
        formed = iter(gradients)
        return (None, None, None, *(next(formed) if needed else None for needed in ctx.needs_input_grad[3:]))


def _recomputed(ctx: Any, logprob_slope: Tensor, entropy_slope: Tensor) -> list[Tensor]:
    """Backward without weights: each chunk's logits a second time."""
    targets, hidden, *parameters = ctx.saved_tensors
    options: _Options = ctx.options
    head = chunked_head(options.head, hidden, parameters, ctx.needs_input_grad[3:])
    softmax = Softmax(options.temperature, options.compiled)
    logprob_slope, entropy_slope = logprob_slope / options.temperature, entropy_slope / options.temperature
    through_entropy = bool(entropy_slope.any())
    for rows in _chunks(hidden):
        z = head.logits(rows)
        p, figures, entropy, _ = softmax(z.clone() if through_entropy else z, targets[rows])
        if through_entropy:
            z = entropy_slope_(z / options.temperature, p, figures.log_z, entropy, entropy_slope[rows])
        slope = logit_slope_(p, targets[rows], FigureSlopes(target=logprob_slope[rows], log_z=-logprob_slope[rows]))
        head.add(rows, slope.add_(z) if through_entropy else slope)
    return head.gradients()


def _chunks(hidden: Tensor) -> Iterator[slice]:
    size = CHUNK_ROWS_CUDA if hidden.is_cuda else CHUNK_ROWS
    return (slice(start, start + size) for start in range(0, hidden.shape[0], size))


def _autocast(device: str) -> dict[str, Any]:
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return {"device_type": device, "dtype": dtype, "enabled": enabled}


def _nothing(hidden: Tensor) -> tuple[Tensor, ...]:
    empty = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return empty, empty.clone(), empty.clone(), torch.zeros(0, dtype=torch.bool, device=hidden.device)


def _trainable(head: Head) -> list[nn.Parameter]:
    return [p for p in head.parameters() if p.requires_grad]
