"""Which sequence each token of a micro-batch is part of, padded and packed alike.

Legend: B x T tokens of a micro-batch, N = B T of them, padding included; S sequences.
"""

import torch
from torch import Tensor

from relax.data.batching.batches import Batch


def sequence_numbers(batch: Batch) -> Tensor:
    """[B, T], into ``batch.lengths``: the sequence each token is part of; S for padding."""
    sequences = torch.arange(len(batch.lengths), device=batch.lengths.device)
    if batch.documents is not None:
        # The number of tokens is known here: a GPU need not be asked for it.
        return sequences.repeat_interleave(batch.lengths, output_size=batch.input_ids.numel())[None]
    places = torch.arange(batch.input_ids.shape[1], device=batch.lengths.device)
    return torch.where(places < batch.lengths[:, None], sequences[:, None], len(sequences))


def token_lengths(batch: Batch) -> Tensor:
    """[B, T], fp32: how many tokens the token's sequence has; infinity for padding."""
    lengths = batch.lengths.float()
    return torch.cat([lengths, lengths.new_tensor([torch.inf])])[sequence_numbers(batch)]


def sequence_members(batch: Batch) -> Tensor:
    """[S, N], bool: which tokens each sequence has; padding is part of none."""
    sequences = torch.arange(len(batch.lengths), device=batch.lengths.device)
    return sequence_numbers(batch).flatten() == sequences[:, None]
