"""metrics.jsonl holds what was logged, in full precision, and survives a kill."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_run import Tiny, fit

from callbacks import Checkpoint, MetricsFile, SafeInterrupt, StepSeed
from relax.checkpoint_io import latest_checkpoint
from relax.errors import UserError


def rows(path: Path) -> list[dict[str, Any]]:
    """Without ``seconds``, the one thing that differs between two runs."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


class Killed(BaseException):
    """Ends a run as a kill does: nothing of ours runs after it."""


class KillAt(L.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            for callback in trainer.callbacks:
                if isinstance(callback, MetricsFile):
                    callback._rows.clear()  # what was only in memory is gone
            raise Killed


def test_a_row_a_step_and_one_a_validation_in_full_precision(tmp_path: Path) -> None:
    module = fit(MetricsFile(tmp_path / "m.jsonl"), module=Tiny(validates=True), max_epochs=2, val_check_interval=3)
    found = rows(tmp_path / "m.jsonl")
    steps = [row for row in found if "train/loss" in row]
    assert [(row["step"], row["epoch"]) for row in steps] == [(i + 1, i // 6) for i in range(12)]
    assert [row["train/loss"] for row in steps] == [loss for _, loss in module.losses]
    assert [set(row) for row in found if row not in steps] == [{"step", "epoch", "val/loss"}] * 4
    assert [row["step"] for row in found if row not in steps] == [3, 6, 9, 12]


def test_doubles_keep_their_digits(tmp_path: Path) -> None:
    class Logs(Tiny):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.log("third", torch.tensor(1 / 3, dtype=torch.float64))

    fit(MetricsFile(tmp_path / "m.jsonl"), module=Logs(), max_steps=1)
    assert rows(tmp_path / "m.jsonl")[0]["third"] == 1 / 3


def test_a_metric_is_only_in_the_rows_of_the_steps_that_logged_it(tmp_path: Path) -> None:
    class Sometimes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step % 4 == 0:
                pl_module.log("sometimes", 7.0)

    fit(Sometimes(), MetricsFile(tmp_path / "m.jsonl"), module=Tiny(validates=True), val_check_interval=3)
    assert [row["step"] for row in rows(tmp_path / "m.jsonl") if "sometimes" in row] == [4, 8, 12, 16]
    assert len(rows(tmp_path / "m.jsonl")) == 18 + 6


def test_only_logged_steps(tmp_path: Path) -> None:
    fit(MetricsFile(tmp_path / "m.jsonl"), log_every_n_steps=4)
    assert [row["step"] for row in rows(tmp_path / "m.jsonl")] == [4, 8, 12, 16]


@pytest.mark.parametrize("killed_at", [3, 7, 12, 14])
def test_killed_and_resumed_is_the_file_of_the_uninterrupted_run(tmp_path: Path, killed_at: int) -> None:
    arguments: dict[str, Any] = {"val_check_interval": 3, "max_epochs": 3}
    fit(StepSeed(), MetricsFile(tmp_path / "whole.jsonl"), module=Tiny(validates=True), **arguments)
    path, saved = tmp_path / "m.jsonl", tmp_path / "checkpoints"
    with pytest.raises(Killed):
        fit(
            StepSeed(),
            KillAt(killed_at),
            MetricsFile(path),
            Checkpoint(saved, every_n_steps=2, monitor="val/loss"),
            module=Tiny(validates=True),
            **arguments,
        )
    with path.open("a") as file:
        file.write('{"step": 17, "epoch": 2, "train/lo')  # a line that the kill cut
    resumed = [StepSeed(), MetricsFile(path), Checkpoint(saved, every_n_steps=2, monitor="val/loss")]
    fit(*resumed, module=Tiny(validates=True), ckpt_path=latest_checkpoint(saved), **arguments)
    assert rows(path) == rows(tmp_path / "whole.jsonl")


@pytest.mark.parametrize("at", ["step", "validation", "due validation"])
def test_interrupted_and_resumed_is_the_file_of_the_uninterrupted_run(tmp_path: Path, at: str) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == {"step": 4, "due validation": 5}.get(at):
                os.kill(os.getpid(), signal.SIGTERM)

        def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 6 and at == "validation":
                os.kill(os.getpid(), signal.SIGTERM)

    arguments: dict[str, Any] = {"val_check_interval": 3, "max_epochs": 3}
    fit(StepSeed(), MetricsFile(tmp_path / "whole.jsonl"), module=Tiny(validates=True), **arguments)
    path, guard = tmp_path / "m.jsonl", SafeInterrupt(tmp_path)
    first = fit(StepSeed(), Interrupt(), MetricsFile(path), guard, module=Tiny(validates=True), **arguments)
    assert (first.trainer.global_step, guard.exit_code) == (5 if at == "step" else 6, 143)
    resumed = [StepSeed(), MetricsFile(path), SafeInterrupt(tmp_path)]
    fit(*resumed, module=Tiny(validates=True), ckpt_path=latest_checkpoint(tmp_path), **arguments)
    assert rows(path) == rows(tmp_path / "whole.jsonl")


def test_seconds_go_on_after_a_resume(tmp_path: Path) -> None:
    fit(MetricsFile(tmp_path / "m.jsonl"), Checkpoint(tmp_path), max_epochs=1)
    file = MetricsFile(tmp_path / "m.jsonl")
    saved = torch.load(tmp_path / "step=00000006.ckpt", weights_only=True)
    saved["callbacks"]["MetricsFile"]["seconds"] = 1000.0
    torch.save(saved, tmp_path / "step=00000006.ckpt")
    fit(file, Checkpoint(tmp_path), ckpt_path=tmp_path / "step=00000006.ckpt")
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert 1000 < seconds[6] < 1010


def test_the_file_of_another_run_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    fit(MetricsFile(path), max_steps=2)
    before = path.read_text()
    with pytest.warns(UserWarning, match=r"another run: renamed to m\.jsonl\.old"):
        fit(MetricsFile(path), max_steps=3)
    assert (tmp_path / "m.jsonl.old").read_text() == before
    assert len(rows(path)) == 3


def test_rows_are_on_disk_when_a_checkpoint_is(tmp_path: Path) -> None:
    path, seen = tmp_path / "m.jsonl", []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                seen.append(len(rows(path)))

    fit(Watch(), MetricsFile(path), Checkpoint(tmp_path, every_n_steps=4), max_epochs=1)
    assert seen == [4]


def test_what_was_logged_before_an_error_is_written(tmp_path: Path) -> None:
    class Dies(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise Killed

    with pytest.raises(Killed):
        fit(Dies(), MetricsFile(tmp_path / "m.jsonl"))
    assert [row["step"] for row in rows(tmp_path / "m.jsonl")] == [1, 2, 3]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write m\.jsonl in .*file"):
        fit(MetricsFile(tmp_path / "file" / "m.jsonl"))
