"""Which rows make an optimizer step, how a step is cut into micro-batches, and what a micro-batch holds.

The rows of a step are a function of (seed, epoch, batch size) alone. How they are cut over ranks, accumulation steps
and rows of a tensor changes speed, never the gradient: each micro-batch carries the denominator of the whole step.

Legend: B sequences, T tokens, K training targets of a micro-batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from relax.errors import UserError
from relax.seeding import mix

if TYPE_CHECKING:
    from relax.attention import Documents
    from relax.data.tokenized import Sample, TokenizedDataset

LENGTH_GROUP_STEPS = 32
"""With ``group_by_length``, rows are sorted by length within windows of this many optimizer steps."""


@dataclass
class Batch:
    """One micro-batch. Padded: [B, T], padding on the right. Packed: [1, T], documents end to end, longest first."""

    input_ids: Tensor
    """[B, T]"""
    positions: Tensor
    """[K], into the B x T tokens: where the state lies that predicts each target."""
    targets: Tensor
    """[K], token ids."""
    weights: Tensor
    """[K], fp32: 1, or 0 in a micro-batch that only fills up the step."""
    owners: Tensor
    """[K], into ``rows``: whose target it is."""
    rows: list[int]
    """Where they stood in the data set, counted from 1: for messages, not for the maths."""
    num_tokens: int
    """Real tokens, padding not counted."""
    step_targets: float = 1.0
    """Targets of the whole optimizer step, over all ranks and micro-batches: the denominator of a mean over tokens."""
    step_micro_batches: int = 1
    """World size x accumulation steps."""
    position_ids: Tensor | None = None
    """[1, T] of a packed batch: restarts with each document."""
    documents: "Documents | None" = None
    longest_mask: Tensor | None = None
    """See ``Documents.longest_mask``."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for a data loader that feeds a GPU."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {k: function(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def collate_padded(samples: "Sequence[Sample]", rows: Sequence[int] = (), pad_id: int = 0) -> Batch:
    """One row a sample, padded on the right to the longest."""
    longest = max(len(s.input_ids) for s in samples)
    ids = np.full((len(samples), longest), pad_id, dtype=np.int64)
    for row, sample in zip(ids, samples, strict=True):
        row[: len(sample.input_ids)] = sample.input_ids
    starts = [i * longest for i in range(len(samples))]
    return _batch(torch.from_numpy(ids), samples, starts, rows)


def collate_packed(samples: "Sequence[Sample]", rows: Sequence[int] = (), pad_id: int = 0) -> Batch:
    """All samples end to end in one row, longest first (``pad_id`` is not needed and taken for symmetry)."""
    from relax.attention import Documents

    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].input_ids))
    samples, rows = [samples[i] for i in order], [rows[i] for i in order] if rows else ()
    lengths = [len(s.input_ids) for s in samples]
    ids = np.concatenate([np.asarray(s.input_ids, dtype=np.int64) for s in samples])
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    documents = Documents.of(lengths)
    return replace(
        _batch(torch.from_numpy(ids)[None], samples, starts, rows),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        documents=documents,
        longest_mask=documents.longest_mask,
    )


def _batch(input_ids: Tensor, samples: "Sequence[Sample]", starts: list[int], rows: Sequence[int]) -> Batch:
    """Add the targets: token t of a sample is predicted by the state at t - 1."""
    trained = [np.flatnonzero(np.asarray(s.loss_mask)[1:]) for s in samples]
    positions = torch.from_numpy(np.concatenate([where + start for where, start in zip(trained, starts, strict=True)]))
    owners = torch.from_numpy(np.repeat(np.arange(len(samples)), [len(where) for where in trained]))
    return Batch(
        input_ids=input_ids,
        positions=positions,
        targets=input_ids.flatten()[positions + 1],
        weights=torch.ones(len(positions)),
        owners=owners,
        rows=list(rows) or list(range(1, len(samples) + 1)),
        num_tokens=sum(len(s.input_ids) for s in samples),
        step_targets=float(max(1, len(positions))),
    )


@dataclass(frozen=True)
class Layout:
    """How an optimizer step is cut: ``batch_size`` sequences = world size x accumulation x micro-batch size."""

    batch_size: int
    micro_batch_size: int
    accumulate: int
    world_size: int

    @classmethod
    def of(cls, batch_size: int, world_size: int, micro_batch_size: int | None, accumulate: int | None) -> "Layout":
        """Derive what is not given.

        Raises:
            UserError: the numbers do not multiply to ``batch_size``.
        """
        if batch_size % world_size:
            raise UserError(
                f"batch_size must be divisible by the number of devices, got {batch_size} over {world_size}; "
                f"try --batch_size={-(-batch_size // world_size) * world_size}"
            )
        share = batch_size // world_size
        if micro_batch_size is None:
            micro_batch_size = share // (accumulate or 1)
        micro_batch_size = min(max(1, micro_batch_size), share)
        if accumulate is None:
            accumulate = share // micro_batch_size
        if micro_batch_size * accumulate != share:
            raise UserError(
                f"batch_size must be devices x accumulate_grad_batches x micro_batch_size, got {batch_size} against "
                f"{world_size} x {accumulate} x {micro_batch_size}; change --micro_batch_size or --batch_size"
            )
        return cls(batch_size, micro_batch_size, accumulate, world_size)

    @classmethod
    def whole(cls, samples: int, world_size: int, micro_batch_size: int) -> "Layout":
        """All ``samples`` as one step (a validation), in micro-batches of at most ``micro_batch_size``."""
        return cls(samples, micro_batch_size, -(-samples // (world_size * micro_batch_size)), world_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimizer step over all ranks."""
        return self.world_size * self.accumulate


def epoch_steps(lengths: np.ndarray, batch_size: int, seed: int, epoch: int, group_by_length: bool) -> list[np.ndarray]:
    """The sample indices of each optimizer step of an epoch; the last step may be smaller, no sample is left out."""
    generator = np.random.default_rng(mix(seed, "order", epoch))
    order = generator.permutation(len(lengths))
    if group_by_length:
        window = batch_size * LENGTH_GROUP_STEPS
        windows = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])
    steps = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if group_by_length:
        steps = [steps[i] for i in generator.permutation(len(steps))]
    return steps


def cut_step(samples: np.ndarray, lengths: np.ndarray, layout: Layout) -> list[list[list[int]]]:
    """[accumulation step][rank] -> samples: neighbours in length share a micro-batch, ranks get alike ones.

    A last, smaller step of an epoch may leave micro-batches empty.
    """
    by_length = samples[np.argsort(-lengths[samples], kind="stable")]
    parts = [part.tolist() for part in np.array_split(by_length, layout.micro_batches)]
    world = layout.world_size
    return [parts[i : i + world] for i in range(0, len(parts), world)]


class EpochBatches(torch.utils.data.Dataset[Batch]):
    """The micro-batches of one epoch on one rank, in order, built when asked for (by a data worker, for example)."""

    def __init__(
        self,
        data: "TokenizedDataset",
        steps: list[np.ndarray],
        layout: Layout,
        rank: int,
        collate: Callable[[Sequence["Sample"], Sequence[int]], Batch],
    ) -> None:
        self.data, self.steps, self.layout, self.rank, self.collate = data, steps, layout, rank, collate
        self.cut: tuple[int, list[list[list[int]]]] = (-1, [])

    def __len__(self) -> int:
        return len(self.steps) * self.layout.accumulate

    def __getitem__(self, index: int) -> Batch:
        step, slot = divmod(index, self.layout.accumulate)
        samples = self.steps[step]
        if self.cut[0] != step:
            self.cut = (step, cut_step(samples, self.data.lengths, self.layout))
        mine = self.cut[1][slot][self.rank]
        filler = not mine
        if filler:
            mine = [int(samples[0])]
        batch = self.collate([self.data[i] for i in mine], [int(self.data.source_rows[i]) + 1 for i in mine])
        return replace(
            batch,
            num_tokens=0 if filler else batch.num_tokens,
            weights=torch.zeros_like(batch.weights) if filler else batch.weights,
            step_targets=float(self.data.num_targets[samples].sum()),
            step_micro_batches=self.layout.micro_batches,
        )
