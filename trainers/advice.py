"""Warnings of a trainer: settings that will have no effect, or one that will not be wanted."""

import warnings
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Checkpoint

if TYPE_CHECKING:
    from trainers.trainer import Trainer


def warn_without_effect(trainer: "Trainer") -> None:
    """At construction: a validation without data, a folder without checkpoints."""
    if trainer.val_data is None and trainer.val_every_n_steps is not None:
        warnings.warn("--val_every_n_steps has no effect without validation data", stacklevel=4)
    if trainer.output_dir is not None and not any(isinstance(c, Checkpoint) for c in trainer.own_callbacks):
        warnings.warn(
            f"no checkpoint will be written to {trainer.output_dir}: pass callbacks=default_callbacks(output_dir)",
            stacklevel=4,
        )


def warn_of_settings_for_another_trainer(trainer: "Trainer") -> None:
    """When a ``lightning.Trainer`` of the user's own runs the module: what only ``Trainer.train`` reads."""
    given = [*trainer.lightning_settings, *(["callbacks"] if trainer.own_callbacks else [])]
    given += ["resume"] if trainer.resume else []
    given += ["val_every_n_steps"] if trainer.val_every_n_steps else []
    if given:
        warnings.warn(
            f"{', '.join(given)}: no effect with a lightning.Trainer of your own; give them to it", stacklevel=3
        )


def warn_of_half_precision(trainer: "Trainer") -> None:
    """Before the run: weights that small updates are lost on."""
    half = any(p.element_size() < 4 for p in trainer.model.parameters() if p.requires_grad)
    if half or trainer.trainer.precision in ("bf16-true", "16-true"):
        warnings.warn(
            "the trained weights are in half precision, where small updates are lost to rounding; use "
            "--dtype=float32 with --precision=bf16-mixed",
            stacklevel=3,
        )


def warn_of_a_validation_that_never_comes(trainer: "Trainer", steps_of_an_epoch: int) -> None:
    """When the run begins: it ends before the first validation is due."""
    steps = trainer.trainer.estimated_stepping_batches
    first = trainer.val_every_n_steps or steps_of_an_epoch
    if trainer.val_data is not None and first > steps:
        warnings.warn(
            f"the validation data are never used: the run ends at step {steps}, before the first validation at "
            f"step {first}; lower --val_every_n_steps",
            stacklevel=3,
        )
