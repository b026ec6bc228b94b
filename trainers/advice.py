"""Warnings of a trainer: settings that will have no effect, or one that will not be wanted."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint

from relax.data.batching.streaming import SampleStream

if TYPE_CHECKING:
    from trainers.on_policy import OnPolicyTrainer
    from trainers.trainer import Trainer


BETAS = (0.9, 0.999)
"""Their default."""


def warn_without_effect(trainer: "Trainer") -> None:
    """At construction: what needs another setting, or data, that is not there; a folder without checkpoints."""
    if trainer.val_data is None and trainer.val_every_n_steps is not None:
        warnings.warn("--val_every_n_steps has no effect without validation data", stacklevel=4)
    if tuple(trainer.betas) != BETAS and trainer.optimizer not in ("adamw", "adam", "sgd"):
        warnings.warn(f"--betas={trainer.betas} has no effect with --optimizer={trainer.optimizer}", stacklevel=4)
    if trainer.overwrite and trainer.output_dir is None:
        warnings.warn("--overwrite has no effect without --output_dir", stacklevel=4)
    if trainer.data_workers > 1 and isinstance(trainer.train_data, SampleStream):
        warnings.warn(f"--data_workers={trainer.data_workers}: a stream is read by one process", stacklevel=4)
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


def warn_of_a_loader_of_prompts(settings: Mapping[str, Any]) -> None:
    """When each batch of such a loader is one update: what is about how iterations are made and cut.

    Args:
        settings: of an on-policy trainer, by name.
    """
    idle: dict[str, object] = {"micro_batch_size": None, "max_tokens_per_micro_batch": None, "steps_per_generation": 1}
    idle |= {"num_iterations": 1, "dynamic_sampling": False, "max_dropped_share": 0.05}
    if given := [name for name, value in idle.items() if settings.get(name, value) != value]:
        warnings.warn(
            f"{', '.join(given)}: no effect with a loader of prompts, each batch of which is one update", stacklevel=3
        )


def warn_of_dropout() -> None:
    """Before a run on its own rollouts, by a policy whose forward pass is noisy in training only."""
    warnings.warn(
        "the policy has dropout, which acts in training and not in sampling: ratios are noisy from the first step on, "
        "and may be clipped for that; leave out --lora_dropout, or set the model's to 0",
        stacklevel=3,
    )


def warn_of_another_accumulation(trainer: "Trainer", accumulate: int) -> None:
    """The same, where a budget of tokens decides how often is accumulated, and the user said how often."""
    given = trainer.trainer.accumulate_grad_batches
    if trainer.max_tokens_per_micro_batch is not None and given not in (1, accumulate):
        warnings.warn(
            f"accumulate_grad_batches={given} of the lightning.Trainer: no effect, max_tokens_per_micro_batch="
            f"{trainer.max_tokens_per_micro_batch} makes it {accumulate}",
            stacklevel=3,
        )


def warn_of_half_precision(trainer: "Trainer") -> None:
    """Before the run: weights that small updates are lost on."""
    half = any(p.element_size() < 4 for p in trainer.parameters() if p.requires_grad)  # a critic's, too
    if half or trainer.trainer.precision in ("bf16-true", "16-true"):
        warnings.warn(
            "the trained weights are in half precision, where small updates are lost to rounding; use "
            "--dtype=float32 with --precision=bf16-mixed",
            stacklevel=3,
        )


def warn_of_a_validation_at_the_end_of_a_stream(trainer: "Trainer") -> None:
    """When the run begins: the stream may go on for longer than the run."""
    if trainer.val_data is not None and not trainer.val_every_n_steps and trainer.trainer.max_steps != -1:
        warnings.warn(
            f"the validation data are used only where the stream ends, which step {trainer.trainer.max_steps} may come "
            "before; give --val_every_n_steps",
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


def warn_of_few_prompts(trainer: "OnPolicyTrainer") -> None:
    """At construction: some prompts will be asked more than once in an iteration."""
    asked = trainer.prompts_per_iteration
    if trainer.prompts is not None and len(trainer.prompts) < asked:
        warnings.warn(
            f"an iteration asks {asked} prompts (--batch_size x --steps_per_generation / --num_generations) and the "
            f"data have {len(trainer.prompts)}: some are asked more than once, in groups of their own",
            stacklevel=4,
        )
