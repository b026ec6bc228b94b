"""The finished model is exported, an unfinished one is not."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from tiny_run import Tiny, fit

from callbacks import Checkpoint, HFExport, SafeInterrupt
from relax.errors import UserError


class Exports(Tiny):
    def export(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "step").write_text(str(self.global_step))


def test_the_end_of_the_run_is_exported(tmp_path: Path) -> None:
    fit(HFExport(tmp_path / "model"), module=Exports())
    assert (tmp_path / "model" / "step").read_text() == "18"


def test_every_n_steps_beside_it(tmp_path: Path) -> None:
    fit(HFExport(tmp_path / "model", every_n_steps=3, at_end=False), module=Exports(), accumulate_grad_batches=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"model-step={step:08d}" for step in (3, 6, 9)]


def test_an_interrupted_run_exports_nothing(tmp_path: Path) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    fit(HFExport(tmp_path / "model"), Interrupt(), SafeInterrupt(tmp_path / "checkpoints"), module=Exports())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 18}])
def test_a_finished_run_that_died_before_its_export_is_exported_on_resume(tmp_path: Path, limit: Any) -> None:
    fit(Checkpoint(tmp_path), **limit)
    arguments: dict[str, Any] = {"ckpt_path": tmp_path / "step=00000018.ckpt"} | limit
    fit(HFExport(tmp_path / "no", at_end=False), Checkpoint(tmp_path), module=Exports(), **arguments)
    assert not (tmp_path / "no").exists()
    fit(HFExport(tmp_path / "model"), Checkpoint(tmp_path), module=Exports(), **arguments)
    assert (tmp_path / "model" / "step").read_text() == "18"
    (tmp_path / "model" / "step").write_text("as it was")
    fit(HFExport(tmp_path / "model"), Checkpoint(tmp_path), module=Exports(), **arguments)
    assert (tmp_path / "model" / "step").read_text() == "as it was"


def test_a_signal_in_the_last_step_interrupts_nothing(tmp_path: Path) -> None:
    class Late(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 17:
                os.kill(os.getpid(), signal.SIGTERM)

    guard = SafeInterrupt(tmp_path / "checkpoints")
    fit(HFExport(tmp_path / "model"), Late(), guard, module=Exports())
    assert (tmp_path / "model" / "step").read_text() == "18"
    assert guard.exit_code == 143


def test_a_logger_that_keeps_folders_gets_it(tmp_path: Path) -> None:
    class Keeps(CSVLogger):
        kept: list[str] = []  # noqa: RUF012

        def log_folder(self, folder: Path) -> None:
            self.kept.append((folder / "step").read_text())

    logger = Keeps(tmp_path / "logs")
    fit(HFExport(tmp_path / "model"), module=Exports(), logger=logger)
    assert logger.kept == ["18"]


def test_a_module_that_cannot_export_is_refused_before_training(tmp_path: Path) -> None:
    module = Tiny()
    with pytest.raises(UserError, match=r"needs a module with export\(folder\), Tiny has none"):
        fit(HFExport(tmp_path / "model"), module=module)
    assert not module.losses
    with pytest.raises(UserError, match="above 0, got 0"):
        HFExport(tmp_path, every_n_steps=0)
