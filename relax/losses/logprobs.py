"""Log-probs of given tokens from hidden states, in chunks: the full N x V logits never exist.

One path for SFT, PPO, GRPO and the reference model. The head and its derivative are ``relax.losses.heads``'; the
derivative of the softmax is written out below, in place, because that is where memory and time go.

Legend: N token positions, D hidden size, V vocabulary. z logits, p = softmax(z), y the target.

    l = z_y - logsumexp(z)              dl/dz = onehot(y) - p
    H = logsumexp(z) - sum(p z)         dH/dz = -p (z - logsumexp(z) + H)
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from relax.losses.heads import Head, chunked_head

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
    """sum_i weights_i l_i, its gradient formed in the forward pass: the logits are computed once.

    Args:
        hidden: [N, D]; head, targets, temperature, compiled: as for ``token_logprobs``.
        weights: [N], constants; no gradient reaches them.

    Returns:
        The sum (a scalar) and the detached statistics.
    """
    options = _Options(head, temperature, compiled, torch.is_grad_enabled())
    # The gradient is formed before a loss scaler can act: weights near 1 keep it within the range of half precision.
    scale = weights.abs().amax().clamp_min(torch.finfo(weights.dtype).tiny) if len(weights) else weights.new_ones(())
    outputs = _TokenLogprobs.apply(options, targets, weights / scale, hidden, *_trainable(head))
    return outputs[0] * scale, TokenStatistics(*(x.detach() for x in outputs[1:]))


class _Options(NamedTuple):
    head: Head
    temperature: float
    compiled: bool
    grad: bool


class _TokenLogprobs(torch.autograd.Function):
    """With ``weights`` the gradient is formed in forward, without them chunk by chunk in backward."""

    @staticmethod
    def forward(
        ctx: Any, options: _Options, targets: Tensor, weights: Tensor | None, hidden: Tensor, *parameters: nn.Parameter
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needed = ctx.needs_input_grad[3:]
        form = weights is not None and options.grad and any(needed)  # needs_input_grad knows nothing of no_grad
        head = chunked_head(options.head, hidden, parameters, needed if form else [False] * len(needed))
        softmax = _Softmax(options)
        chunks: list[tuple[Tensor, ...]] = []
        for rows in _chunks(hidden):
            p, _, *statistics = softmax(head.logits(rows), targets[rows])
            chunks.append(tuple(statistics))
            if form:
                assert weights is not None
                head.add(rows, _logprob_slope_(p, targets[rows], weights[rows] / options.temperature))
        logprobs, entropy, correct = (
            (torch.cat(parts) for parts in zip(*chunks, strict=True)) if chunks else _nothing(hidden)
        )
        total = (weights * logprobs).sum() if weights is not None else logprobs.new_zeros(())
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
    softmax = _Softmax(options)
    logprob_slope, entropy_slope = logprob_slope / options.temperature, entropy_slope / options.temperature
    through_entropy = bool(entropy_slope.any())
    for rows in _chunks(hidden):
        z = head.logits(rows)
        p, log_z, _, entropy, _ = softmax(z.clone() if through_entropy else z, targets[rows])
        if through_entropy:
            z = _entropy_slope_(z / options.temperature, p, log_z, entropy, entropy_slope[rows])
        slope = _logprob_slope_(p, targets[rows], logprob_slope[rows])
        head.add(rows, slope.add_(z) if through_entropy else slope)
    return head.gradients()


class _Softmax:
    """Softmax and figures of each row of logits [n, V], always into the same buffer: fresh memory costs page faults."""

    def __init__(self, options: _Options) -> None:
        self.temperature = options.temperature
        self.function = _compile(_softmax) if options.compiled else _softmax
        self.buffer: Tensor | None = None

    def __call__(self, z: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """See ``_softmax``; ``z`` is overwritten."""
        if self.buffer is None:  # the first chunk is the largest
            self.buffer = torch.empty_like(z)
        return self.function(z, targets, self.temperature, self.buffer[: len(z)])


def _softmax(z: Tensor, targets: Tensor, temperature: float, out: Tensor) -> tuple[Tensor, ...]:
    """Softmax (in ``out``), logsumexp, log-prob, entropy, correctness."""
    if temperature != 1.0:
        z = z.div_(temperature)
    top = z.amax(-1)
    target = z.gather(-1, targets[:, None]).squeeze(-1)
    p = torch.softmax(z, -1, out=out)
    log_z = top - p.amax(-1).log()  # the likeliest token has p >= 1 / V: no log of an underflow
    entropy = log_z - z.mul_(p).sum(-1)
    return p, log_z, target - log_z, entropy, target == top


def _logprob_slope_(p: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """The slope upstream (onehot(y) - p), [n, V], in the place of p."""
    slope = p.mul_(-upstream[:, None])
    return slope.scatter_add_(-1, targets[:, None], upstream[:, None].to(slope.dtype))


def _entropy_slope_(z: Tensor, p: Tensor, log_z: Tensor, entropy: Tensor, upstream: Tensor) -> Tensor:
    """-upstream p (z - logsumexp(z) + H), [n, V], in the place of z."""
    return z.sub_((log_z - entropy)[:, None]).mul_(p).mul_(-upstream[:, None])


def _chunks(hidden: Tensor) -> Iterator[slice]:
    size = CHUNK_ROWS_CUDA if hidden.is_cuda else CHUNK_ROWS
    return (slice(start, start + size) for start in range(0, hidden.shape[0], size))


def _autocast(device: str) -> dict[str, Any]:
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return {"device_type": device, "dtype": dtype, "enabled": enabled}


def _nothing(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    empty = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return empty, empty.clone(), torch.zeros(0, dtype=torch.bool, device=hidden.device)


def _trainable(head: Head) -> list[nn.Parameter]:
    return [p for p in head.parameters() if p.requires_grad]


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
