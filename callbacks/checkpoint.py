"""Checkpoints: periodic, the best by a metric, and the last; each continues the run exactly.

Exactness asks for two things that Lightning's ModelCheckpoint leaves to its user: save only where an optimizer step is
complete, and where a validation follows, save after it, because Lightning does not repeat it on resume.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from relax.atomic_file import remove_leftovers
from relax.checkpoint_io import make_atomic, step_checkpoint, step_checkpoints
from relax.errors import UserError
from relax.lightning_loop import step_completed, training_ends, validation_follows
from relax.protocols import BufferedLogger

BEST = "best.ckpt"


class Checkpoint(LightningCheckpoint):
    """Writes ``step=00000120.ckpt`` and ``best.ckpt`` into ``folder``, atomically.

    Args:
        folder: where checkpoints lie; for nothing else.
        every_n_steps: save after every so many optimizer steps; None does not.
        keep: how many of the newest ``step=*.ckpt`` stay; while one is written there is one more.
        monitor: metric by which ``best.ckpt`` is chosen, after each validation, or after each of `Evaluate` if it is
            one of its figures; None keeps no best.
        mode: whether the metric is better when lower (min) or higher (max).
        save_at_end: also save the last optimizer step.

    Attributes:
        last_path: the newest checkpoint of this run, or the one it was resumed from.
        best_value, best_step: of ``best.ckpt``; they travel in the checkpoints.

    Raises:
        UserError: a setting out of range; during training: an unknown metric, no room, a folder that is not writable.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int | None = None,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_at_end: bool = True,
    ) -> None:
        if keep < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise UserError(f"keep and every_n_steps of Checkpoint must be above 0, got {keep} and {every_n_steps}")
        if mode not in ("min", "max"):
            raise UserError(f"mode of Checkpoint must be min or max, got {mode}")
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.monitor, self.mode, self.save_at_end = monitor, mode, save_at_end
        self.last_path: Path | None = None
        self.best_value: float | None = None
        self.best_step: int | None = None
        self._saved_step = -1
        self._monitored_step = -1  # at which the metric was last measured
        self._evaluated = False  # the metric is measured by Evaluate, not by Lightning's validation

    @property
    def state_key(self) -> str:
        """One Checkpoint for the period and another for a metric may stand side by side."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def best_model_path(self) -> str:
        """The name under which Lightning looks for it, for ``ckpt_path="best"``; empty without a best."""
        return "" if self.best_step is None else str(self.folder / BEST)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before anything is restored: make the trainer read and write checkpoints safely."""
        make_atomic(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clear away what a killed run left half written, and set newer checkpoints than this start aside."""
        self.last_path = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            remove_leftovers(self.folder, "*.ckpt")
            _set_aside(self.folder, newer_than=trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save what an evaluation found to be best, and a due optimizer step, unless a validation comes first."""
        if step_completed(trainer) and not validation_follows(trainer):
            self._save(trainer)

    def on_evaluation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, figures: Mapping[str, float], seconds: float
    ) -> None:
        """`Evaluate`'s hook, before ``on_train_batch_end``. Before the first step there is nothing to save."""
        if self.monitor in figures:
            self._monitored_step, self._evaluated = trainer.global_step or -1, True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Inside an epoch: save what the validation found to be best, and a due optimizer step with it."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if not self._evaluated:
            self._monitored_step = trainer.global_step
        if not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After a validation at an epoch's end: EarlyStopping looks at its figures here, and a resumed run has none."""
        if trainer.is_last_batch:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if self.monitor is not None and self._monitored_step == trainer.global_step:
            self._save_if_best(trainer, self.monitor)
        if self._due(trainer):
            self.save_step(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if the run was stopped where no exact checkpoint can be written."""
        step = trainer.global_step
        missing = step != self._saved_step and not step_checkpoint(self.folder, step).exists()
        if self.save_at_end and missing and trainer.is_global_zero:
            warnings.warn(
                f"the run was stopped at step {step} by a hook that runs after Checkpoint; "
                f"its last checkpoint is {self.last_path}",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return {"best_value": self.best_value, "best_step": self.best_step, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self._evaluated = state_dict.get("evaluated", False)  # not in the checkpoints of older versions

    def save_step(self, trainer: L.Trainer) -> Path:
        """Save the optimizer step just completed, if it is not saved yet, then drop old ones; on every rank."""
        if self.last_path is None or trainer.global_step != self._saved_step:
            self._saved_step = trainer.global_step
            self.last_path = save_checkpoint(trainer, step_checkpoint(self.folder, trainer.global_step))
            for _, path in step_checkpoints(self.folder)[: -self.keep]:
                trainer.strategy.remove_checkpoint(path)  # on rank 0 only
        return self.last_path

    def _due(self, trainer: L.Trainer) -> bool:
        periodic = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        return step_completed(trainer) and (periodic or (self.save_at_end and training_ends(trainer)))

    def _save_if_best(self, trainer: L.Trainer, monitor: str) -> None:
        metrics = trainer.callback_metrics
        if monitor not in metrics:
            raise UserError(
                f"monitor of Checkpoint must be a logged metric, got {monitor}; logged: {', '.join(metrics)}"
            )
        # Rank 0 decides: a metric that was logged without sync_dist differs between ranks.
        value: float = trainer.strategy.broadcast(_number(metrics[monitor]))
        if not self._better(value):
            return
        if not step_completed(trainer):
            warnings.warn(
                f"no {BEST}: this validation lies between two optimizer steps, where no checkpoint is exact; make "
                "val_check_interval a multiple of accumulate_grad_batches",
                stacklevel=2,
            )
            return
        self.best_value, self.best_step = value, trainer.global_step
        save_checkpoint(trainer, self.folder / BEST)

    def _better(self, value: float) -> bool:
        if self.best_value is None:
            return value == value  # a first NaN is not the best
        return value < self.best_value if self.mode == "min" else value > self.best_value


def save_checkpoint(trainer: L.Trainer, path: Path) -> Path:
    """Write the loggers' buffers, then the checkpoint; on every rank."""
    for logger in trainer.loggers:
        if isinstance(logger, BufferedLogger):
            logger.flush()
    trainer.save_checkpoint(path, weights_only=False)
    return path


def _set_aside(folder: Path, newer_than: int) -> None:
    """Rename the checkpoints of a future that this run will write anew, so that ``auto`` cannot pick them up."""
    newer = [path for step, path in step_checkpoints(folder) if step > newer_than]
    for path in newer:
        path.rename(path.with_name(f"{path.name}.old"))
    if newer:
        names = ", ".join(path.name for path in newer)
        warnings.warn(f"training starts at step {newer_than}: renamed {names} in {folder} to *.old", stacklevel=2)


def _number(value: Tensor | float) -> float:
    return float(value)
