"""The start-up audit: what is trained on what, told before the first step, and kept with the run."""

from pathlib import Path

import lightning as L

from relax.data.audit import save_audit
from relax.protocols import Auditable
from relax.report import say_audit


class DataAudit(L.Callback):
    """Prints the audit of the training data when a run begins.

    For modules with ``audit()``, as ReLax's trainers have it; silent with others. A resumed run writes it anew, because
    it may see the data by another layout, and prints nothing.

    Args:
        folder: where ``data_audit.txt`` and ``data_audit.json`` go; None only prints.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print and write it, on rank 0.

        Raises:
            UserError: the folder cannot be written.
        """
        if not trainer.is_global_zero or not isinstance(pl_module, Auditable):
            return
        audit = pl_module.audit()
        if trainer.global_step == 0:
            say_audit(audit, self.folder)
        elif self.folder is not None:
            save_audit(audit, self.folder)
