"""Writes the model as Hugging Face users load it, at the end of the run and every so many steps."""

from pathlib import Path
from typing import Any

import lightning as L

from callbacks.safe_interrupt import SafeInterrupt
from relax.errors import UserError
from relax.lightning_loop import step_completed
from relax.protocols import Exportable, KeepsFolders


class HFExport(L.Callback):
    """Calls ``pl_module.export(folder)``, on every rank, when the run is finished; an interrupted one exports nothing.

    A run that had finished, but died before its export was written, is exported when it is resumed.

    Args:
        folder: where the finished model goes; loggers that keep files get a copy of it.
        every_n_steps: also export into ``folder-step=00000120`` beside it after every so many optimizer steps.
        at_end: export when the run is finished.

    Raises:
        UserError: the module has no ``export(folder)``.
    """

    def __init__(self, folder: str | Path, every_n_steps: int | None = None, at_end: bool = True) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps of HFExport must be above 0, got {every_n_steps}")
        self.folder, self.every_n_steps, self.at_end = Path(folder), every_n_steps, at_end
        self._owed = self._trained = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse at once what would fail after hours."""
        self._owed, self._trained = self.at_end and stage == "fit", False
        if stage == "fit" and not isinstance(pl_module, Exportable):
            raise UserError(f"HFExport needs a module with export(folder), {type(pl_module).__name__} has none")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Lightning's hook."""
        self._trained = True
        step = trainer.global_step
        if self.every_n_steps is not None and step_completed(trainer) and step % self.every_n_steps == 0:
            _export(pl_module, self.folder.with_name(f"{self.folder.name}-step={step:08d}"))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        savers = trainer.checkpoint_callbacks
        interrupted = any(isinstance(saver, SafeInterrupt) and saver.exit_code is not None for saver in savers)
        if not interrupted:
            self._export_end(trainer, pl_module)
        self._owed = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning skips ``on_train_end`` where nothing is left to train."""
        self._export_end(trainer, pl_module)

    def _export_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._owed or (not self._trained and trainer.strategy.broadcast(self.folder.exists())):
            return
        _export(pl_module, self.folder)
        for logger in trainer.loggers:
            if trainer.is_global_zero and isinstance(logger, KeepsFolders):
                logger.log_folder(self.folder)


def _export(pl_module: L.LightningModule, folder: Path) -> None:
    assert isinstance(pl_module, Exportable)
    pl_module.export(folder)
