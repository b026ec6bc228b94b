"""From an experience to the micro-batches of one rank: which completions make each optimizer step, cut as SFT cuts.

Legend: S completions of the experience, K target tokens of a micro-batch, B its completions.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from relax.data.batching.batches import Batch
from relax.data.batching.epoch import BatchBuilder, EpochBatches
from relax.data.batching.planning import Step
from relax.experience.experience import Experience
from relax.policy_gradient import Segments, StepTotals
from relax.seeding import mix

Int64 = npt.NDArray[np.int64]


class Minibatch:
    """A micro-batch of an experience: tokens as the model reads them, and what is known of them.

    No dataclass: of one, plugins for true half precision would round every field, and with it the log-probs that ratios
    are computed from.

    Attributes:
        batch: K targets, those of B completions.
        segments: the completions that the targets are made of.
        tokens: [K] each, as ``Experience.tokens``.
        completions: [B] each, as ``Experience.completions``.
        totals: of the whole optimizer step.
        computed_tokens: of the whole optimizer step: tokens that are in a micro-batch; the gradient of others is 0.
        fresh: the policy has not been changed since it sampled this: its log-probs are those of sampling.
        learns: the optimizer step has a gradient.
    """

    def __init__(
        self,
        batch: Batch,
        segments: Segments,
        tokens: dict[str, Tensor],
        completions: dict[str, Tensor],
        totals: StepTotals,
        *,
        computed_tokens: int,
        fresh: bool,
        learns: bool,
    ) -> None:
        self.batch, self.segments, self.tokens, self.completions = batch, segments, tokens, completions
        self.totals, self.computed_tokens, self.fresh, self.learns = totals, computed_tokens, fresh, learns

    @property
    def rows(self) -> list[int]:
        """Numbers of the completions in the experience, counted from 1."""
        return self.batch.rows

    @property
    def num_tokens(self) -> int:
        """Real tokens, prompts included."""
        return self.batch.num_tokens

    @property
    def input_ids(self) -> Tensor:
        """As the model reads them."""
        return self.batch.input_ids

    @property
    def lengths(self) -> Tensor:
        """[B], tokens with the prompt."""
        return self.batch.lengths

    @property
    def stream_position(self) -> int:
        """An experience is no stream."""
        return 0

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> "Minibatch":
        """The same on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=bool(non_blocking)), self.batch.to(device, non_blocking))

    def pin_memory(self) -> "Minibatch":
        """The same in page-locked memory."""
        return self._map(Tensor.pin_memory, self.batch.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor], batch: Batch) -> "Minibatch":
        changed = copy.copy(self)
        changed.batch, changed.segments = batch, Segments(*map(function, self.segments))
        changed.tokens = {name: function(column) for name, column in self.tokens.items()}
        changed.completions = {name: function(column) for name, column in self.completions.items()}
        return changed


@dataclass(frozen=True)
class Pass:
    """One optimizer step of a pass over an experience: its completions."""

    completions: list[int]
    """All of them: the denominators count these."""
    computed: list[int]
    """Those that have a gradient."""


def plan_passes(
    trained: Tensor, idle: Tensor, lengths: Tensor, *, passes: int, steps_per_pass: int, seed: int
) -> list[Pass]:
    """The optimizer steps of an iteration: in each pass every completion once, at random.

    Equal parts by number, and about equal by tokens: completions are dealt in order of length, one to each step in
    turn, and which step gets which of a turn is drawn.

    Args:
        trained: [S], bool: completions that count.
        idle: [S], bool: those among them whose gradient is known to be 0.
        lengths: [S], tokens of each.
        passes: over the experience.
        steps_per_pass: equal parts of a pass.
        seed: of the order, a function of run and iteration.
    """
    steps = []
    for number in range(passes):
        generator = np.random.default_rng(mix(seed, "pass", number))
        for part in _dealt(generator.permutation(len(trained)), lengths.numpy(), steps_per_pass, generator):
            kept = [int(i) for i in part if trained[i]]
            steps.append(Pass(kept, [i for i in kept if not idle[i]]))
    return steps


def _dealt(order: Int64, lengths: Int64, parts: int, generator: np.random.Generator) -> list[Int64]:
    if parts == 1:
        return [order]
    by_length = order[np.argsort(-lengths[order], kind="stable")]  # which of equals comes first stays drawn
    turns = [by_length[i : i + parts] for i in range(0, len(by_length), parts)]
    takers = [generator.permutation(parts)[: len(turn)] for turn in turns]
    taken = np.concatenate(takers) if takers else order
    return [generator.permutation(by_length[taken == part]) for part in range(parts)]


class ExperienceBatches(Dataset[Minibatch]):
    """The micro-batches of an iteration on one rank, in order.

    Args:
        experience: of all ranks.
        steps: of the iteration.
        builder: how a step is cut and collated.
        max_tokens: the most tokens that a completion may have.
    """

    def __init__(self, experience: Experience, steps: Sequence[Pass], builder: BatchBuilder, max_tokens: int) -> None:
        self.experience, self.steps, self.accumulate = experience, steps, builder.layout.accumulate
        # A step in which nothing is to be learned still needs its micro-batches: one completion, without weight.
        parts = [np.array(step.computed or [0]) for step in steps]
        cuts = [Step(part, np.arange(len(part))) for part in parts]
        self.batches = EpochBatches(experience.sequences, cuts, builder)
        lengths = experience.lengths.tolist()
        micro_batches = builder.layout.micro_batches
        self.totals = [
            StepTotals.of([lengths[i] for i in step.completions], max_tokens, micro_batches) for step in steps
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Minibatch:
        number = index // self.accumulate
        step, batch = self.steps[number], self.batches[index]
        chosen = [row - 1 for row in batch.rows]
        at, where = self.experience.token_places(chosen), torch.tensor(chosen, dtype=torch.int64)
        lengths = self.experience.lengths[where]
        learns = bool(step.computed)
        fills_up = batch.num_tokens == 0 or not learns
        return Minibatch(
            batch,
            Segments(batch.owners, lengths),
            {name: column[at] for name, column in self.experience.tokens.items()},
            {name: column[where] for name, column in self.experience.completions.items()},
            # Everything is multiplied by the number of micro-batches: 0 takes this one out.
            replace(self.totals[number], micro_batches=0) if fills_up else self.totals[number],
            computed_tokens=int(self.experience.lengths[step.computed].sum()) if learns else 1,
            fresh=number == 0,
            learns=learns,
        )
