"""The micro-batches of every iteration on one rank: rolled out when the first of them is asked for."""

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.utils.data import Dataset, Subset

from relax.data.batching.epoch import BatchBuilder
from relax.data.batching.layout import Layout
from relax.experience import Experience, ExperienceBatches, Minibatch, plan_passes
from relax.lightning_loop import brings_own_loader
from relax.seeding import mix

if TYPE_CHECKING:
    from trainers.on_policy import OnPolicyTrainer


@dataclass(frozen=True)
class RolloutBatches:
    """A ``BatchSource`` whose epochs are iterations."""

    trainer: "OnPolicyTrainer"
    builder: BatchBuilder

    @property
    def micro_batches(self) -> int:
        """Of an iteration, on each rank."""
        steps = self.trainer.num_iterations * self.trainer.steps_per_generation
        return steps * self.builder.layout.accumulate

    def open(self, epoch: int, position: int, rows_read: int = 0) -> Dataset[Minibatch]:
        """Those of an iteration from ``position`` on."""
        passes, steps = self.trainer.num_iterations, self.trainer.steps_per_generation
        experience = self.trainer.experience_of(epoch)
        batches = minibatches(self.trainer, experience, self.builder, passes=passes, steps_per_pass=steps)
        return Subset(batches, range(position, len(batches)))


def minibatches(
    trainer: "OnPolicyTrainer", experience: Experience, builder: BatchBuilder, *, passes: int, steps_per_pass: int
) -> ExperienceBatches:
    """An experience as the optimizer steps of an iteration."""
    shuffling = mix(trainer.seed, "minibatches", experience.numbers[0])
    trained, idle = trainer.trained(experience), trainer.idle(experience)
    cut = {"passes": passes, "steps_per_pass": steps_per_pass, "seed": shuffling}
    steps = plan_passes(trained, idle, experience.lengths, **cut)
    return ExperienceBatches(experience, steps, builder, trainer.sampling.max_new_tokens)


def layout(trainer: "OnPolicyTrainer", *, padded: bool) -> Layout:
    """How a step is cut: by count, by tokens, or, with a loader of the user's own, each batch of prompts on its own."""
    lightning, budget = trainer.trainer, trainer.max_tokens_per_micro_batch
    if brings_own_loader(lightning):
        size, ranks = lightning.world_size, lightning.world_size
        # However many completions a batch gives, a rank reads its part at one time: here too, without gradients.
        return Layout(size, sys.maxsize, lightning.accumulate_grad_batches, ranks, padded=padded)
    if budget is not None:
        return _cut_for_the_longest(trainer, budget, padded)
    given = lightning.accumulate_grad_batches if lightning.state.fn == "fit" else None
    return replace(trainer.cut(lightning.world_size, given), padded=padded)


def _cut_for_the_longest(trainer: "OnPolicyTrainer", budget: int, padded: bool) -> Layout:
    """By tokens: as many micro-batches as it takes where every sequence is as long as it may be.

    Lightning accumulates equally often at every step, and how long completions will be is not known before.
    """
    world_size = trainer.trainer.world_size
    rows = budget // trainer.longest_row()
    accumulate = -(-trainer.batch_size // (rows * world_size))
    return Layout(trainer.batch_size, None, accumulate, world_size, max_tokens=budget, padded=padded)


def layout_of_one_update(builder: BatchBuilder, completions: int, world_size: int) -> BatchBuilder:
    """For an experience that is one optimizer step, and one micro-batch on each rank."""
    cut = Layout(completions, -(-completions // world_size), 1, world_size, padded=builder.layout.padded)
    return replace(builder, layout=cut)
