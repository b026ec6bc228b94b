"""Log-probs of given tokens from hidden states, in chunks: the full N x V logits never exist.

One path for SFT, PPO, GRPO and the reference model. The head is any callable (bias, scaling, soft-capping, LoRA): its
own derivative is autograd's, the derivative of the softmax is written out below, because that is where the memory goes.

Legend: N token positions, D hidden size, V vocabulary. z logits, p = softmax(z), y the target.

    l = z_y - logsumexp(z)              dl/dz = onehot(y) - p
    H = logsumexp(z) - sum(p z)         dH/dz = -p (z - logsumexp(z) + H)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**24
"""Logits that exist at one time (64 MiB in fp32): about 110 rows at a vocabulary of 151,936."""


class Head(Protocol):
    """Hidden states [n, D] to logits [n, V]."""

    def __call__(self, hidden: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights that the logits depend on."""
        ...


class TokenStatistics(NamedTuple):
    """Of each target token, on the distribution softmax(logits / temperature)."""

    logprobs: Tensor
    """[N], natural logarithm."""
    entropy: Tensor
    """[N], nats, of the whole distribution."""
    correct: Tensor
    """[N], bool: the target is the most likely token."""


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
    options = _Options(head, temperature, compiled)
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
    options = _Options(head, temperature, compiled)
    outputs = _TokenLogprobs.apply(options, targets, weights, hidden, *_trainable(head))
    return outputs[0], TokenStatistics(*(x.detach() for x in outputs[1:]))


class _Options(NamedTuple):
    head: Head
    temperature: float
    compiled: bool


class _TokenLogprobs(torch.autograd.Function):
    """With ``weights`` the gradient is formed in forward, without them chunk by chunk in backward."""

    @staticmethod
    def forward(
        ctx: Any, options: _Options, targets: Tensor, weights: Tensor | None, hidden: Tensor, *parameters: nn.Parameter
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.options, ctx.formed = options, weights is not None
        wanted = [x for x, needed in zip((hidden, *parameters), ctx.needs_input_grad[3:], strict=True) if needed]
        form = weights is not None and bool(wanted)
        gradients = _Gradients(hidden, parameters, ctx.needs_input_grad[3:])
        chunks: list[tuple[Tensor, ...]] = []
        for rows in _chunks(hidden, options):
            with torch.set_grad_enabled(form):
                states = hidden[rows].detach().requires_grad_(form and ctx.needs_input_grad[3])
                logits = options.head(states)
            z = _scaled(logits.detach(), options.temperature)
            statistics = _function(_statistics, options.compiled)(z, targets[rows])
            if form:
                assert weights is not None
                slope = _function(_logprob_slope, options.compiled)(
                    z, targets[rows], statistics[0], weights[rows] / options.temperature
                )
                gradients.add(rows, states, logits, slope)
            chunks.append(statistics[1:])
        logprobs, entropy, correct = (
            (torch.cat(parts) for parts in zip(*chunks, strict=True)) if chunks else _nothing(hidden)
        )
        total = (weights * logprobs).sum() if weights is not None else logprobs.new_zeros(())
        ctx.mark_non_differentiable(correct)
        saved = gradients.tensors() if form else [targets, hidden, *parameters]
        ctx.save_for_backward(*saved)
        return total, logprobs, entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        total_slope, logprob_slope, entropy_slope, _ = slopes
        if ctx.formed:
            formed = iter(ctx.saved_tensors)
            return (None, None, None, *(next(formed) * total_slope if n else None for n in ctx.needs_input_grad[3:]))
        targets, hidden, *parameters = ctx.saved_tensors
        options: _Options = ctx.options
        gradients = _Gradients(hidden, parameters, ctx.needs_input_grad[3:])
        for rows in _chunks(hidden, options):
            with torch.enable_grad():
                states = hidden[rows].detach().requires_grad_(ctx.needs_input_grad[3])
                logits = options.head(states)
            z = _scaled(logits.detach(), options.temperature)
            log_z, _, entropy, _ = _function(_statistics, options.compiled)(z, targets[rows])
            slope = _function(_logprob_slope, options.compiled)(z, targets[rows], log_z, logprob_slope[rows])
            slope += _entropy_slope(z, log_z, entropy, entropy_slope[rows])
            gradients.add(rows, states, logits, slope / options.temperature)
        formed = iter(gradients.tensors())
        return (None, None, None, *(next(formed) if needed else None for needed in ctx.needs_input_grad[3:]))


class _Gradients:
    """Gradients of the hidden states and of the head's weights, summed over chunks."""

    def __init__(self, hidden: Tensor, parameters: Sequence[nn.Parameter], needed: Sequence[bool]) -> None:
        self.hidden = torch.zeros_like(hidden) if needed[0] else None
        self.parameters = [p for p, n in zip(parameters, needed[1:], strict=True) if n]
        self.sums: list[Tensor] = []

    def add(self, rows: slice, states: Tensor, logits: Tensor, slope: Tensor) -> None:
        inputs = [states, *self.parameters] if self.hidden is not None else self.parameters
        found = list(torch.autograd.grad(logits, inputs, slope.to(logits.dtype)))
        if self.hidden is not None:
            self.hidden[rows] = found.pop(0)
        self.sums = [total.add_(new) for total, new in zip(self.sums, found, strict=True)] if self.sums else found

    def tensors(self) -> list[Tensor]:
        sums = self.sums or [torch.zeros_like(p) for p in self.parameters]
        return sums if self.hidden is None else [self.hidden, *sums]


def _statistics(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logsumexp, log-prob, entropy, correctness of each row of z [n, V]."""
    log_z = z.logsumexp(-1)
    logprobs = z.gather(-1, targets[:, None]).squeeze(-1) - log_z
    p = (z - log_z[:, None]).exp()
    entropy = log_z - torch.linalg.vecdot(p, z)
    return log_z, logprobs, entropy, z.argmax(-1) == targets


def _logprob_slope(z: Tensor, targets: Tensor, log_z: Tensor, upstream: Tensor) -> Tensor:
    """Upstream (onehot(y) - p), [n, V]."""
    slope = (z - log_z[:, None]).exp() * -upstream[:, None]
    return slope.scatter_add(-1, targets[:, None], upstream[:, None].to(slope.dtype))


def _entropy_slope(z: Tensor, log_z: Tensor, entropy: Tensor, upstream: Tensor) -> Tensor | float:
    """-upstream p (z - logsumexp(z) + H), [n, V]."""
    if not upstream.any():
        return 0.0
    log_p = z - log_z[:, None]
    return -upstream[:, None] * log_p.exp() * (log_p + entropy[:, None])


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """At least fp32: sums over a vocabulary lose too much in half precision."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return z if temperature == 1.0 else z / temperature


def _chunks(hidden: Tensor, options: _Options) -> Iterator[slice]:
    vocabulary = max(p.shape[0] for p in options.head.parameters() if p.ndim > 1)
    size = max(16, CHUNK_LOGITS // vocabulary)
    return (slice(start, start + size) for start in range(0, hidden.shape[0], size))


def _nothing(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    empty = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return empty, empty.clone(), torch.zeros(0, dtype=torch.bool, device=hidden.device)


def _trainable(head: Head) -> list[nn.Parameter]:
    return [p for p in head.parameters() if p.requires_grad]


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _function(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return _compile(function) if compiled else function
