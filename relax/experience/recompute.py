"""What another model, or this one once more, makes of the tokens of an experience; without gradients."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from relax import causal_lm
from relax.data.batching.epoch import BatchBuilder, EpochBatches
from relax.data.batching.planning import Step
from relax.experience.experience import Experience
from relax.losses import token_logprobs
from relax.modes import evaluating


@torch.no_grad()
def token_statistics(
    model: nn.Module,
    experience: Experience,
    completions: Sequence[int],
    *,
    builder: BatchBuilder,
    temperature: float,
    device: torch.device,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (nats) of the tokens of some completions, in their order, on the CPU, [their tokens].

    Args:
        model: in evaluation mode meanwhile.
        experience: whose tokens.
        completions: indices, ascending.
        builder: how large its micro-batches are.
        temperature: divides the logits.
        device: of the model.
        compiled: fuse the softmax with ``torch.compile``.
    """
    if not completions:
        return torch.zeros(0), torch.zeros(0)
    data, chosen = experience.sequences, np.array(completions, dtype=np.int64)
    step = Step(chosen, np.arange(len(chosen)))
    layout = replace(builder.layout, world_size=1).whole(step, data.lengths)
    batches = EpochBatches(data, [step], replace(builder, layout=layout, rank=0))
    places, logprobs, entropies = [], [], []
    with evaluating(model):
        for index in range(len(batches)):
            batch = batches[index].to(device)
            if not batch.num_tokens:  # it only fills the step up
                continue
            hidden, head = causal_lm.hidden_states(model, batch), causal_lm.language_head(model)
            found = token_logprobs(hidden, head, batch.targets, temperature=temperature, compiled=compiled)
            places.append(experience.token_places([row - 1 for row in batch.rows]))
            logprobs.append(found.logprobs.cpu())
            entropies.append(found.entropy.cpu())
    # From the order of micro-batches to that of the experience.
    order = torch.cat(places).argsort()
    return torch.cat(logprobs)[order], torch.cat(entropies)[order]
