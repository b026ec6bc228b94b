"""What models make of the tokens of an experience: the policy once more, a reference, a critic; without gradients."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from relax import causal_lm
from relax.critic import Critic
from relax.data.batching.batches import Batch
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

    def read(batch: Batch) -> tuple[Tensor, Tensor]:
        hidden, head = causal_lm.hidden_states(model, batch), causal_lm.language_head(model)
        found = token_logprobs(hidden, head, batch.targets, temperature=temperature, compiled=compiled)
        return found.logprobs, found.entropy

    with evaluating(model):
        return _of_tokens(experience, completions, builder, device, read)


@torch.no_grad()
def token_values(
    critic: Critic,
    experience: Experience,
    completions: Sequence[int],
    *,
    builder: BatchBuilder,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """V before each token of some completions, and V after the last token of each one, [their tokens] both.

    The second is the same at all tokens of a completion. Arguments are those of ``token_statistics``.
    """

    def read(batch: Batch) -> tuple[Tensor, Tensor]:
        last = batch.owners.bincount(minlength=len(batch.rows)).cumsum(0) - 1
        behind = batch.positions[last] + 1  # where the last token itself lies
        values = critic(replace(batch, positions=torch.cat([batch.positions, behind])))
        before, after = values.split([len(batch.positions), len(behind)])
        return before, after[batch.owners]

    with evaluating(critic), evaluating(critic.policy):
        return _of_tokens(experience, completions, builder, device, read)


def _of_tokens(
    experience: Experience,
    completions: Sequence[int],
    builder: BatchBuilder,
    device: torch.device,
    read: Callable[[Batch], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """What ``read`` makes of the targets of micro-batches, in the order of ``completions``, on the CPU."""
    if not completions:
        return torch.zeros(0), torch.zeros(0)
    data, chosen = experience.sequences, np.array(completions, dtype=np.int64)
    step = Step(chosen, np.arange(len(chosen)))
    layout = replace(builder.layout, world_size=1).whole(step, data.lengths)
    batches = EpochBatches(data, [step], replace(builder, layout=layout, rank=0))
    places, first, second = [], [], []
    for index in range(len(batches)):
        batch = batches[index].to(device)
        if not batch.num_tokens:  # it only fills the step up
            continue
        one, other = read(batch)
        places.append(experience.token_places([row - 1 for row in batch.rows]))
        first.append(one.cpu())
        second.append(other.cpu())
    # From the order of micro-batches to that of the experience.
    order = torch.cat(places).argsort()
    return torch.cat(first)[order], torch.cat(second)[order]
