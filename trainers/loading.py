"""What Lightning iterates: a loader of training batches that can be resumed, and the held-out rows as one step."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relax.data.batching.epoch import BatchBuilder, EpochBatches, PlannedBatches
from relax.data.batching.loader import BatchSource, Bookmark, ResumableLoader
from relax.data.batching.planning import Planned, Step
from relax.lightning_loop import micro_batches_done
from trainers.batching import TrainingBatches
from trainers.dry_run import LargestStep

if TYPE_CHECKING:
    from trainers.trainer import Trainer


def training_loader(
    trainer: "Trainer",
    batches: TrainingBatches,
    *,
    rehearses: bool,
    bookmark: Callable[[], Bookmark | None],
) -> ResumableLoader:
    """The micro-batches of this rank, from ``bookmark`` on; in a rehearsal, those of the largest step."""
    source: BatchSource = batches
    if rehearses and isinstance(batches, PlannedBatches):
        source = LargestStep(batches)
    return ResumableLoader(
        source,
        epoch=lambda: trainer.current_epoch,
        processed=lambda: micro_batches_done(trainer.trainer),
        resume=bookmark,
        identity=_identity(trainer, batches.builder),
        workers=trainer.data_workers,
        pin_memory=trainer.device.type == "cuda",
    )


def _identity(trainer: "Trainer", builder: BatchBuilder) -> dict[str, Any]:
    """What a place in the data depends on."""
    layout = builder.layout
    return {
        "data": trainer.train_data.fingerprint,
        "seed": trainer.seed,
        "micro_batch_size": layout.micro_batch_size,
        "max_tokens_per_micro_batch": layout.max_tokens,
        "number of devices": layout.world_size,
        **{name: trainer.hparams[name] for name in trainer.bound},
        # With a budget of tokens it also depends on how many epochs there are, and on padding.
        "number of micro-batches a step": layout.accumulate,
        **trainer.beside_checkpoint,
    }


def validation_batches(data: Planned, builder: BatchBuilder) -> EpochBatches:
    """The held-out rows of this rank, as one step over the whole set."""
    rows = np.arange(len(data))
    everything = Step(rows, rows)
    return EpochBatches(data, [everything], replace(builder, layout=builder.layout.whole(everything, data.lengths)))
