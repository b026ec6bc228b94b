"""A language model's head over chunks of rows: logits, and the derivative summed over the chunks. No softmax here.

A head that is one linear layer in full precision writes its logits into one buffer and adds to its gradient in place:
page faults and passes over a large vocabulary's weights cost as much as a third of the matrix products. Any other head
(LoRA, scaling, soft-capping, half precision) is differentiated by autograd.

Legend: N token positions, n of them in a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Head(Protocol):
    """Hidden states [n, D] to logits [n, V]."""

    def __call__(self, hidden: Tensor, /) -> Tensor: ...

    @property
    def linear(self) -> nn.Linear | None:
        """The layer, where the head is that layer and nothing else."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights that the logits depend on."""
        ...


class ChunkedHead(Protocol):
    """The head on ``hidden`` [N, D]."""

    def logits(self, rows: slice) -> Tensor:
        """[n, V], at least fp32, in memory that the caller may overwrite and that the next call reuses."""
        ...

    def add(self, rows: slice, slope: Tensor) -> None:
        """Add the part of the gradient that comes from ``slope`` [n, V], the derivative with respect to the logits."""
        ...

    def gradients(self) -> list[Tensor]:
        """Of the hidden states and the head's weights, those that are needed."""
        ...


def chunked_head(head: Head, hidden: Tensor, parameters: Sequence[nn.Parameter], needed: Sequence[bool]) -> ChunkedHead:
    """Args: needed: whether ``hidden`` and each of ``parameters`` wants a gradient."""
    wanted = [p for p, n in zip(parameters, needed[1:], strict=True) if n]
    linear = head.linear
    full_precision = hidden.dtype in (torch.float32, torch.float64)
    if linear is not None and full_precision and not torch.is_autocast_enabled(hidden.device.type):
        return _LinearHead(linear, hidden, wanted, needed[0])
    return _AnyHead(head, hidden, wanted, needed[0])


class _LinearHead:
    def __init__(self, linear: nn.Linear, hidden: Tensor, wanted: Sequence[nn.Parameter], hidden_wanted: bool) -> None:
        self.hidden, self.weight, self.bias = hidden, linear.weight, linear.bias
        self.hidden_gradient = torch.empty_like(hidden) if hidden_wanted else None
        ids = {id(p) for p in wanted}
        self.weight_sum = torch.zeros_like(linear.weight) if id(linear.weight) in ids else None
        self.bias_sum = torch.zeros_like(linear.bias) if id(linear.bias) in ids else None
        self.buffer: Tensor | None = None

    def logits(self, rows: slice) -> Tensor:
        states = self.hidden[rows]
        if self.buffer is None:  # the first chunk is the largest
            self.buffer = states.new_empty(len(states), len(self.weight))
        z = torch.mm(states, self.weight.t(), out=self.buffer[: len(states)])
        return z if self.bias is None else z.add_(self.bias)

    def add(self, rows: slice, slope: Tensor) -> None:
        if self.hidden_gradient is not None:
            torch.mm(slope, self.weight, out=self.hidden_gradient[rows])
        if self.weight_sum is not None:
            self.weight_sum.addmm_(slope.t(), self.hidden[rows])
        if self.bias_sum is not None:
            self.bias_sum.add_(slope.sum(0))

    def gradients(self) -> list[Tensor]:
        return [x for x in (self.hidden_gradient, self.weight_sum, self.bias_sum) if x is not None]


class _AnyHead:
    def __init__(self, head: Head, hidden: Tensor, wanted: Sequence[nn.Parameter], hidden_wanted: bool) -> None:
        self.head, self.hidden, self.wanted = head, hidden, list(wanted)
        self.hidden_gradient = torch.zeros_like(hidden) if hidden_wanted else None
        self.sums: list[Tensor] = []

    def logits(self, rows: slice) -> Tensor:
        hidden_wanted = self.hidden_gradient is not None
        with torch.set_grad_enabled(hidden_wanted or bool(self.wanted)):
            self.states = self.hidden[rows].detach().requires_grad_(hidden_wanted)
            self.outputs = self.head(self.states)
        # A copy, because autograd may need the outputs; at least fp32, because half precision sums a vocabulary badly.
        return self.outputs.detach().to(torch.promote_types(self.outputs.dtype, torch.float32), copy=True)

    def add(self, rows: slice, slope: Tensor) -> None:
        inputs = self.wanted if self.hidden_gradient is None else [self.states, *self.wanted]
        found = list(torch.autograd.grad(self.outputs, inputs, slope.to(self.outputs.dtype)))
        if self.hidden_gradient is not None:
            self.hidden_gradient[rows] = found.pop(0)
        self.sums = [total.add_(new) for total, new in zip(self.sums, found, strict=True)] if self.sums else found

    def gradients(self) -> list[Tensor]:
        sums = self.sums or [torch.zeros_like(p) for p in self.wanted]
        return sums if self.hidden_gradient is None else [self.hidden_gradient, *sums]
