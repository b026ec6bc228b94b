"""Noise on the input embeddings while training: NEFTune (arXiv 2310.05914). Draws from the global generator.

Legend: B x T tokens of a micro-batch, D size of an embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relax import causal_lm
from relax.data.batching.batches import Batch
from relax.errors import UserError
from relax.sequences import token_lengths


@contextmanager
def noisy_embeddings(model: nn.Module, alpha: float, batch: Batch) -> Iterator[None]:
    """Within, embeddings of ``batch`` get noise: uniform in +-alpha / sqrt(L D), L the tokens of the token's sequence.

    Departs from the published code in L, which there is the padded length of the micro-batch: here the noise of a
    sequence does not depend on its neighbours. Padding gets none.

    Args:
        model: transformers causal language model, or a PEFT model around one.
        alpha: 5, 10 or 15 in the paper.
        batch: the one that goes through the model.

    Raises:
        UserError: the model does not call its input embeddings.
    """
    embeddings = causal_lm.base_model(model).get_input_embeddings()
    lengths = token_lengths(batch)[..., None]  # [B, T, 1]
    calls = 0

    def add_noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        bound = alpha / (lengths * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * bound.to(output.dtype)

    handle = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        name = type(causal_lm.base_model(model)).__name__
        raise UserError(f"--neftune_alpha: {name} does not use its input embeddings; drop the flag")
