"""Progress counts optimizer steps; a log file gets a few plain lines, a terminal a bar."""

import re
import time
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_run import Tiny, fit

from callbacks import Checkpoint, Progress, Throughput, default_callbacks, progress


class Silent(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])


def run(capsys: pytest.CaptureFixture[str], *callbacks: Any, **arguments: Any) -> list[str]:
    fit(*callbacks, enable_progress_bar=True, **arguments)
    captured = capsys.readouterr()
    return [line for line in captured.err.splitlines() if line.startswith("step ")]


def test_a_log_file_gets_the_first_and_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, Progress(), accumulate_grad_batches=2)
    assert len(lines) == 2
    assert re.fullmatch(r"step 1/9  epoch 0  loss [\d.]+  \d+:\d\d:\d\d left", lines[0])
    assert re.fullmatch(r"step 9/9  epoch 2  loss [\d.]+  0:00:00 left", lines[1])


def test_a_line_every_so_many_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(Tiny):
        def on_train_batch_start(self, *_: Any) -> None:
            time.sleep(0.03)

    lines = run(capsys, Progress(line_seconds=0.1), module=Slow(12), max_epochs=1)
    assert 3 <= len(lines) <= 7


def test_a_validation_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, Progress(), module=Tiny(validates=True), max_epochs=1, num_sanity_val_steps=1)
    assert re.fullmatch(r"step 6  val/loss [\d.]+", lines[-1])


def test_the_loss_is_there_even_if_nothing_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, Progress(), module=Silent(), max_steps=1)
    assert re.search(r"loss [\d.]+", lines[0])


def test_a_resumed_run_goes_on_counting(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    fit(Checkpoint(tmp_path), max_epochs=1)
    lines = run(capsys, Progress(), ckpt_path=tmp_path / "step=00000006.ckpt")
    assert lines[0].startswith("step 7/18")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Console(stderr=True, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    fit(Progress(), Throughput(), module=Tiny(validates=True), enable_progress_bar=True)
    shown = capsys.readouterr().err
    assert "18/18" in shown
    assert "step 18  val/loss" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_an_error_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(Tiny):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise ZeroDivisionError

    terminal = Console(stderr=True, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    with pytest.raises(ZeroDivisionError):
        fit(Progress(), module=Fails(), enable_progress_bar=True)
    assert capsys.readouterr().err.rstrip().endswith("\x1b[?25h")


def test_the_defaults_fit_together(tmp_path: Any) -> None:
    class Exports(Tiny):
        def export(self, folder: Any) -> None:
            folder.mkdir()

    chosen = default_callbacks(tmp_path, checkpoint_every_n_steps=5, monitor="val/loss")
    order = "DataAudit NaNGuard Throughput Progress MetricsFile HFExport Checkpoint SafeInterrupt"
    assert [type(c).__name__ for c in chosen] == order.split()
    fit(*chosen, module=Exports(validates=True), enable_progress_bar=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "model"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "step=00000015.ckpt",
        "step=00000018.ckpt",
    ]


def test_without_a_folder_nothing_is_written() -> None:
    chosen = default_callbacks(None, progress=False)
    assert [type(c).__name__ for c in chosen] == ["DataAudit", "NaNGuard", "Throughput"]
