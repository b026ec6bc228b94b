"""Ctrl-C and SIGTERM end a run where it can be continued exactly, with a checkpoint, on all ranks together."""

import os
import signal
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoint import Checkpoint, save_checkpoint
from relax.checkpoint_io import make_atomic, step_checkpoint
from relax.lightning_loop import step_completed, stop_training, training_ends, validation_follows
from relax.protocols import MarksInterruption
from relax.ranks import leave_group_at_exit, over_ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SafeInterrupt(LightningCheckpoint):
    """The first SIGINT or SIGTERM stops after the optimizer step at hand, with a checkpoint; a second stops at once.

    The signal only leaves a note; after every optimizer step the ranks compare notes, so that one rank's signal stops
    all of them at the same step. A validation that is under way or due is finished first. Before training starts there
    is nothing to save, and the process leaves at once.

    It derives from Lightning's Checkpoint so that Lightning runs it after the callbacks whose state it saves.

    Args:
        folder: where ``step=*.ckpt`` is written, unless the trainer has a `Checkpoint`, which then saves.

    Attributes:
        exit_code: None if there was no signal. Else what to pass to ``sys.exit``: 130 (Ctrl-C) or 143 (SIGTERM), and 0
            on other local ranks, because Lightning kills its main process when a child of it fails.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.exit_code: int | None = None
        self._trainer: L.Trainer | None = None  # while our handlers are to act
        self._training = False
        self._noted = 0
        self._limit_val_batches: int | float | None = None
        self._previous: dict[int, Any] = {}
        self._process = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the signals over from whoever has them."""
        if stage != "fit":
            return
        if threading.current_thread() is not threading.main_thread():
            warnings.warn("SafeInterrupt has no effect: signals reach only the main thread", stacklevel=2)
            return
        make_atomic(trainer)
        self._trainer, self._training, self._noted, self.exit_code = trainer, False, 0, None
        self._process = os.getpid()
        self._previous = {signum: signal.signal(signum, self._on_signal) for signum in SIGNALS}

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM back: Lightning registered a handler that talks to other ranks in the middle of anything."""
        self._take_signals()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on there is something to save."""
        self._take_signals()
        self._training = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop here if any rank was asked to, unless a validation comes first."""
        if step_completed(trainer) and not validation_follows(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop here if any rank was asked to, unless the epoch ends."""
        fitting = not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING
        if fitting and step_completed(trainer) and not trainer.is_last_batch:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop here if any rank was asked to."""
        if trainer.is_last_batch and step_completed(trainer):
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A signal that came in the last step, or while the run was written out, still ends the process afterwards."""
        signum = self._agreed(trainer)
        if signum and self.exit_code is None:
            self._set_exit_code(trainer, signum)
        self._training = False

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None
        self._release_signals()
        leave_group_at_exit()  # else the exit code may become another one

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release_signals()

    # Signals

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        forked = os.getpid() != self._process  # a process that got our handler from this one
        if forked and signum == signal.SIGINT and self._trainer is not None:
            return  # Ctrl-C reaches the whole group, and what was started for the run is needed until the step ends
        if forked and signum == signal.SIGTERM:
            signal.signal(signum, signal.SIG_DFL)  # told to it alone: by a pool that ends, for example
            signal.raise_signal(signum)
        elif self._trainer is None:
            # Lightning puts our handler back after an exception, when we have left already.
            signal.signal(signum, self._previous[signum])
            signal.raise_signal(signum)
        elif self._noted or not self._training:
            self._leave_now(self._trainer, signum)
        else:
            self._noted = signum
            if self._trainer.is_global_zero:
                name = signal.Signals(signum).name
                # Not print: a signal handler must not enter a buffered stream that may be in use.
                os.write(2, f"\n{name}: stopping with a checkpoint; a second signal stops at once\n".encode())

    def _leave_now(self, trainer: L.Trainer, signum: int) -> None:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)  # the ranks that this process started
        raise SystemExit(128 + signum)

    def _take_signals(self) -> None:
        if self._trainer is not None:
            for signum in SIGNALS:
                signal.signal(signum, self._on_signal)

    def _release_signals(self) -> None:
        if self._trainer is not None:
            self._trainer = None
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)

    # The stop

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        signum = self._agreed(trainer)
        if not signum or self.exit_code is not None:
            return
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint)]
        if savers:
            path = savers[0].save_step(trainer)
        else:
            path = save_checkpoint(trainer, step_checkpoint(self.folder, trainer.global_step))
        if training_ends(trainer):
            return  # it is finished, not interrupted: on_train_end does the rest
        self._set_exit_code(trainer, signum)
        self._limit_val_batches = trainer.limit_val_batches
        stop_training(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, MarksInterruption):
                logger.mark_interrupted()
        rank_zero_info(f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}: {path}")

    def _agreed(self, trainer: L.Trainer) -> int:
        """The signal that any rank noted (the highest), or 0; the same on every rank."""
        return int(over_ranks(trainer, self._noted, "max"))

    def _set_exit_code(self, trainer: L.Trainer, signum: int) -> None:
        self.exit_code = 128 + signum if trainer.local_rank == 0 else 0
