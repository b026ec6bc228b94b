"""From a trainer's settings to its micro-batches: packed or padded, planned or streamed, cut by count or by tokens."""

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from relax import causal_lm
from relax.data.audit import Audit, audit
from relax.data.batching.batches import collate_packed, collate_padded
from relax.data.batching.epoch import BatchBuilder, Collate, PlannedBatches
from relax.data.batching.layout import Layout
from relax.data.batching.loader import BatchSource
from relax.data.batching.planning import Batching, Plan
from relax.data.batching.streaming import SampleStream, StreamedBatches
from relax.data.tokens.tokenized import TokenizedDataset
from relax.errors import UserError
from relax.models import pad_id

if TYPE_CHECKING:
    import lightning as L

    from trainers.trainer import Trainer


class TrainingBatches(BatchSource, Protocol):
    """The micro-batches of this rank, and how they are made."""

    @property
    def builder(self) -> BatchBuilder:
        """Cuts and collates them."""
        ...


AUDITED_ROWS = 1000
"""Of a stream."""
AUDITED_STEPS = 2000
"""Of a planned epoch."""
# What needs the lengths of all rows before the run begins.
PLANNED_ONLY = ("group_by_length", "packing_length", "max_tokens_per_micro_batch")


def check_data(trainer: "Trainer") -> None:
    """Refuse settings that the training data, now that they are there, do not fit.

    Raises:
        UserError: a setting that needs all lengths with a stream; a row too long for a budget.
    """
    budget = trainer.max_tokens_per_micro_batch
    for data in (trainer.train_data, trainer.val_data):
        if isinstance(data, SampleStream):
            _check_stream(trainer)
        elif data is not None and budget is not None and data.lengths.max() > budget:
            raise UserError(
                f"--max_tokens_per_micro_batch={budget} must hold the longest row, which has {data.lengths.max()} "
                "tokens; raise it or lower --max_length"
            )


def longest_row(train_data: TokenizedDataset | SampleStream, val_data: TokenizedDataset | None) -> int:
    """Tokens of the longest row of training and validation data, as far as it is known."""
    held_out = 0 if val_data is None else int(val_data.lengths.max())
    if isinstance(train_data, SampleStream):
        return max(held_out, train_data.options.max_length or 0)
    return max(held_out, int(train_data.lengths.max()))


def _check_stream(trainer: "Trainer") -> None:
    settings = vars(trainer)
    for name in PLANNED_ONLY:
        if settings[name]:
            raise UserError(f"--{name}={settings[name]} needs the lengths of all rows: leave it or --streaming out")


def decide_packing(trainer: "Trainer") -> bool:
    """Whether micro-batches are packed.

    Raises:
        UserError: they must be, and the model cannot keep documents apart.
    """
    if trainer.layout == "padded":
        return False
    isolation = causal_lm.isolate_documents(trainer.model)
    if not isolation and (trainer.layout == "packed" or trainer.packing_length is not None):
        flag = "--layout=packed" if trainer.packing_length is None else f"--packing_length={trainer.packing_length}"
        raise UserError(
            f"{flag} needs a model that keeps packed documents apart, {isolation.reason}; drop it, or use "
            "--layout=padded"
        )
    if not isolation:
        warnings.warn(f"{isolation.reason}: rows are padded instead of packed", stacklevel=3)
    return bool(isolation)


def collation(trainer: "Trainer", *, packed: bool) -> Collate:
    """How the samples of a micro-batch are put together."""
    return partial(collate_packed if packed else collate_padded, pad_id=pad_id(trainer.tokenizer))


def build_batches(trainer: "Trainer", *, packed: bool) -> PlannedBatches | StreamedBatches:
    """The micro-batches of this rank; ``trainer`` is attached to a ``lightning.Trainer``."""
    collate = collation(trainer, packed=packed)
    if isinstance(trainer.train_data, SampleStream):
        return StreamedBatches(
            trainer.train_data, BatchBuilder(_by_count(trainer, packed), trainer.global_rank, collate)
        )
    batching = Batching(trainer.batch_size, trainer.seed, trainer.group_by_length, trainer.packing_length)
    plan = Plan(trainer.train_data, batching)
    layout = (
        _by_count(trainer, packed) if trainer.max_tokens_per_micro_batch is None else _by_tokens(trainer, plan, packed)
    )
    return PlannedBatches(plan, BatchBuilder(layout, trainer.global_rank, collate))


def _by_count(trainer: "Trainer", packed: bool) -> Layout:
    given = trainer.trainer.accumulate_grad_batches if _fits(trainer) else None
    layout = trainer.cut(trainer.trainer.world_size, given)
    return replace(layout, padded=not packed)


def _by_tokens(trainer: "Trainer", plan: Plan, packed: bool) -> Layout:
    """Lightning accumulates equally often at every step: as often as the fullest step of the run needs."""
    budget, world_size = trainer.max_tokens_per_micro_batch, trainer.trainer.world_size
    layout = Layout(trainer.batch_size, None, 1, world_size, max_tokens=budget, padded=not packed)
    if not _fits(trainer):
        return layout
    epochs = range(_epochs(trainer.trainer, plan.num_steps))
    return layout.holding((step for epoch in epochs for step in plan.steps(epoch)), plan.data.lengths)


def _fits(trainer: "Trainer") -> bool:
    """Whether there will be optimizer steps; not where a ``lightning.Trainer`` only validates."""
    return trainer.trainer.state.fn == "fit"


def _epochs(trainer: "L.Trainer", steps: int) -> int:
    """Epochs that the run will begin.

    Raises:
        UserError: it has no end but the clock.
    """
    known = [] if trainer.max_epochs in (None, -1) else [int(trainer.max_epochs)]
    known += [] if trainer.max_steps == -1 else [-(-trainer.max_steps // steps)]
    if not known:
        raise UserError("--max_tokens_per_micro_batch needs an end that is known: give --max_steps or --max_epochs")
    return min(known)


def planned_steps(trainer: "Trainer") -> float:
    """Optimizer steps of the run, infinite where only the clock ends it.

    Lightning's own count would begin to read a stream, at its start, before the place to resume at is known.

    Raises:
        UserError: the schedule needs an end.
    """
    stream = isinstance(trainer.train_data, SampleStream)
    steps = stream_steps(trainer.trainer.max_steps) if stream else trainer.trainer.estimated_stepping_batches
    check_end(trainer, steps)
    return steps


def stream_steps(max_steps: int) -> float:
    """Optimizer steps of a run over a stream, infinite where ``max_steps`` (-1: none) does not end it."""
    return math.inf if max_steps == -1 else max_steps


def check_end(trainer: "Trainer", steps: float) -> None:
    """Refuse a schedule over infinitely many steps.

    Raises:
        UserError: it is one, or the warm-up is a share of them.
    """
    if math.isinf(steps) and (trainer.schedule != "constant" or trainer.warmup_ratio is not None):
        raise UserError(
            f"--schedule={trainer.schedule} and --warmup_ratio need to know the end, which neither a stream nor the "
            "clock tells: give --max_steps, or --schedule=constant"
        )


def audit_batches(batches: TrainingBatches, tokenizer: Any, *, seed: int) -> Audit:
    """The audit of the training data, in the micro-batches of the first epoch."""
    assert isinstance(batches, PlannedBatches | StreamedBatches), "the batches of rows"
    if isinstance(batches, StreamedBatches):
        sample = batches.samples.sample(AUDITED_ROWS)
        return audit(sample, tokenizer, packed=not batches.builder.layout.padded, seed=seed, streamed=True)
    epoch, data = batches.epoch(0), batches.plan.data
    # A mixture's shares show in the whole epoch only; how full micro-batches are shows early.
    steps = range(len(epoch.steps) if data.parts is not None else min(AUDITED_STEPS, len(epoch.steps)))
    assert isinstance(data, TokenizedDataset), "rows of text"
    layout, packing_length = epoch.builder.layout, batches.plan.batching.packing_length
    if packing_length is not None:
        parts = [part.tolist() for step in steps for part in epoch.steps[step].members()]
        return audit(data, tokenizer, parts, True, packing_length, sequences=True, seed=seed)
    micro_batches = [part for step in steps for slot in epoch.cut(step) for part in slot]
    return audit(data, tokenizer, micro_batches, not layout.padded, layout.max_tokens, seed=seed)
