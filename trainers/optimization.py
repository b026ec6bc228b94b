"""A trainer's optimizer and schedule, from its settings."""

import warnings
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR

from relax.optimizers import build_optimizer, build_schedule

if TYPE_CHECKING:
    from trainers.trainer import Trainer


def optimization(trainer: "Trainer", *, steps: float, rehearses: bool) -> OptimizerLRSchedulerConfig:
    """For a run of so many optimizer steps, which the schedule counts.

    Raises:
        UserError: nothing is trainable, or a callable gives no optimizer.
    """
    optimizer = build_optimizer(
        trainer.optimizer,
        trainer.parameter_groups(),
        learning_rate=trainer.learning_rate,
        betas=trainer.betas,
        # A fused optimizer unscales fp16 gradients inside its step, after they are clipped, measured and logged.
        fused=trainer.trainer.precision != "16-mixed",
    )
    warmup_steps = trainer.warmup_steps or (round(trainer.warmup_ratio * steps) if trainer.warmup_ratio else 0)
    if warmup_steps and warmup_steps >= steps and not rehearses:
        warnings.warn(f"the warm-up of {warmup_steps} steps is not over when the run ends, at {steps}", stacklevel=3)
    scheduler = build_schedule(
        optimizer,
        trainer.schedule,
        total_steps=steps,
        warmup_steps=warmup_steps,
        min_ratio=trainer.min_lr_ratio,
        decay_ratio=trainer.decay_ratio or 0.3,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def set_rates(trainer: L.Trainer) -> None:
    """Set the rates of the coming step by the schedule as it is now: a run that is made longer has another one."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        assert isinstance(scheduler, LambdaLR), "build_schedule gives this kind"
        groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, base, factor in groups:
            group["lr"] = base * factor(scheduler.last_epoch)


def gradients_are_exact(trainer: L.Trainer) -> bool:
    """Whether gradients are whole and unscaled; sharded ones, or those of fp16, are Lightning's to clip."""
    plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    return plain and trainer.precision != "16-mixed"
