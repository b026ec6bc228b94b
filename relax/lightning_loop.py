"""Where Lightning's training loop stands. The only place that reads it through names that Lightning does not publish.

For ``on_train_batch_end`` and ``on_validation_end``; the tests tell when a Lightning version moves what they rest on.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from relax.errors import UserError

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor


def build_lightning_trainer(**arguments: Any) -> "L.Trainer":
    """A ``lightning.Trainer``.

    Raises:
        UserError: Lightning refuses a setting (devices that do not exist, a precision, a strategy).
    """
    import lightning as L

    with lightning_refusals(TypeError, ValueError):
        return L.Trainer(**arguments)


@contextmanager
def lightning_refusals(*others: type[Exception]) -> Iterator[None]:
    """Lightning's word for a user's mistake becomes ours.

    Raises:
        UserError: for Lightning's ``MisconfigurationException``, and for ``others``.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    refusals: tuple[type[Exception], ...] = (MisconfigurationException, *others)
    try:
        yield
    except refusals as error:
        raise UserError(f"Lightning refuses a setting: {' '.join(str(error).split())}") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on the machine and its tips."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def brings_own_loader(trainer: "L.Trainer") -> bool:
    """Whether ``fit`` was given a loader of training batches beside the module."""
    return not trainer.fit_loop._data_source.is_module()


def step_completed(trainer: "L.Trainer") -> bool:
    """Whether the latest micro-batch completed an optimizer step: False inside an accumulation window."""
    return not trainer.fit_loop._should_accumulate()


def step_is_logged(trainer: "L.Trainer") -> bool:
    """Whether the latest micro-batch completed an optimizer step that Lightning logs: every ``log_every_n_steps``."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0 and step_completed(trainer)


def micro_batches_done(trainer: "L.Trainer") -> int:
    """Micro-batches of this epoch that the loop has finished; those fetched ahead do not count."""
    return int(vars(trainer.fit_loop.epoch_loop.batch_progress.current)["processed"])


def go_on_with_next_epoch(checkpoint: dict[str, Any]) -> None:
    """In ``on_load_checkpoint``: where the checkpoint ends an epoch, let the loop stand at the start of the next.

    Lightning does so itself where it knows an epoch's length. Of a stream it does not: it would find it at its end, and
    take that for the whole next epoch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    if not batches["is_last_batch"] or not batches["current"]["ready"]:
        return
    batches["is_last_batch"] = False
    batches["total"]["completed"] = batches["total"]["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    if batches_that_stepped := loops["epoch_loop.state_dict"].get("_batches_that_stepped"):
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = batches_that_stepped + 1
    for epochs in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        epochs |= dict.fromkeys(epochs, epochs["started"])


def logged_metrics(trainer: "L.Trainer") -> "dict[str, Tensor]":
    """What the training step, or in ``on_validation_end`` the validation, has logged, by name.

    ``trainer.callback_metrics`` mixes the two. A training metric that was not logged in this step is still here, in the
    same memory as before.
    """
    assert trainer._results is not None, "only inside a loop"
    return trainer._results.metrics(on_step=trainer.training)["callback"]


def step_will_be_logged(trainer: "L.Trainer") -> bool:
    """In ``on_before_optimizer_step``: whether the coming step is one that Lightning logs."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def validation_follows(trainer: "L.Trainer") -> bool:
    """In ``on_train_batch_end``: whether Lightning validates before the next micro-batch.

    Lightning does not repeat that validation on resume, so a checkpoint that waits for its end loses nothing of it.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None, "only inside a fit"
    will_have_data = trainer.val_dataloaders is None or sum(trainer.num_val_batches) > 0  # None: not asked for yet
    return will_have_data and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def training_ends(trainer: "L.Trainer") -> bool:
    """Whether the optimizer step just completed is the last one of the run, by its limits or because it was stopped."""
    at_last_batch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
    stopped = trainer.should_stop and trainer.fit_loop._can_stop_early
    return at_last_batch or stopped or trainer.global_step == trainer.max_steps


def stop_training(trainer: "L.Trainer") -> None:
    """End the run after this micro-batch whatever ``min_steps`` and ``min_epochs`` say, without a last validation."""
    trainer.should_stop = True
    trainer.fit_loop.min_epochs = 0
    trainer.fit_loop.epoch_loop.min_steps = None
    trainer.limit_val_batches = 0  # a validation now would not happen in the uninterrupted run
