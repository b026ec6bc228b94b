"""The probe behind packing: do documents in one row stay strangers, in this very model with this very attention?

Two questions, each with the sharpest instrument there is. Does a state of one document depend on a token of another?
Its gradient says: exactly zero, in any dtype, however small the leak. Has each document the states that it has alone?
Compared up to the order of operations: positions that do not restart, or a wrong mask, are orders of magnitude away.

The documents are shorter than most windows, which is no gap: a window is relative to a document's own positions, and
tests/numerics/test_packing_isolation.py has shorter ones. What depends on the length of a row is known by name instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from relax.data.batching.batches import Batch, collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample

LENGTHS = (7, 5, 5)
"""Tokens of the probe's documents; two are of a length, because such go through attention together."""

States = Callable[[Batch], Tensor]
"""A batch of one row -> its states [T, D]."""


def find_fault(states: States, embedding: nn.Module, vocabulary: int, device: torch.device) -> str:
    """Why ``states`` does not keep the documents of a packed row apart, as the end of a sentence; empty: it does.

    ``embedding`` is the module that embeds the tokens, of which there are ``vocabulary``.
    """
    ids = (torch.arange(sum(LENGTHS)) * 7 + 1).remainder(vocabulary).split(LENGTHS)
    samples = [Sample.of(part.tolist(), [True] * len(part)) for part in ids]
    packed = collate_packed(samples).to(device)
    with torch.no_grad():
        alone = torch.cat([states(collate_padded([sample]).to(device)) for sample in samples])
    try:
        if any(_sees_others(states, embedding, packed, document) for document in range(len(samples))):
            return "lets documents see one another"
        with torch.no_grad():
            together = states(packed)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (TypeError, ValueError, LookupError, RuntimeError) as error:  # of models and kernels that cannot do it
        return f"fails on packed rows ({(str(error) or type(error).__name__).splitlines()[0]})"
    return "" if alike(together, alone) else "gives a document other states in a packed row than alone"


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether states [T, D] are equal up to the order of operations, at each position."""
    kind = theirs.device.type
    mixed = [torch.get_autocast_dtype(kind)] if torch.is_autocast_enabled(kind) else []
    dtypes = [theirs.dtype, torch.float32, *mixed]  # models with fp64 weights compute norms in fp32 all the same
    tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
    distance, size = (ours - theirs).float().norm(dim=-1), theirs.float().norm(dim=-1)
    return bool((distance <= tolerance * size).all())


def _sees_others(states: States, embedding: nn.Module, packed: Batch, document: int) -> bool:
    """Whether the states of ``document`` have a gradient at the embedded tokens of the others."""
    embedded: list[Tensor] = []

    def embed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # a leaf itself could not be scaled in place, as some models do

    own = torch.zeros(sum(LENGTHS), dtype=torch.bool, device=packed.input_ids.device)
    own[sum(LENGTHS[:document]) :][: LENGTHS[document]] = True
    with torch.enable_grad(), embedding.register_forward_hook(embed):
        found = states(packed)[own]
    slope = torch.arange(found.numel(), device=found.device).remainder(7).view_as(found)
    # No plain sum: that of a layer norm is constant, its gradient zero. One pass a document, because compiled kernels
    # cannot go backward twice.
    gradients = torch.autograd.grad(found, embedded, slope.to(found.dtype))
    return any(bool(gradient[0, ~own].any()) for gradient in gradients)
