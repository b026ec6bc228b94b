"""Ctrl-C and SIGTERM: a checkpoint at an optimizer step, the conventional exit code, all ranks together."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_run import Tiny, fit, weights

from callbacks import Checkpoint, SafeInterrupt, StepSeed
from relax.checkpoint_io import latest_checkpoint, step_checkpoint

SCRIPT = Path(__file__).with_name("interrupted_run.py")


class SignalAt(L.Callback):
    def __init__(self, batch: int, signum: int = signal.SIGTERM) -> None:
        self.batch, self.signum = batch, signum

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("batch", [0, 3, 5, 8])
def test_the_run_stops_at_a_step_and_continues_exactly(tmp_path: Path, signum: int, code: int, batch: int) -> None:
    whole = fit(StepSeed(), accumulate_grad_batches=2)
    guard = SafeInterrupt(tmp_path)
    stopped = fit(StepSeed(), SignalAt(batch, signum), guard, accumulate_grad_batches=2)
    step = batch // 2 + 1
    assert guard.exit_code == code
    assert [path.name for path in tmp_path.iterdir()] == [f"step={step:08d}.ckpt"]
    again = SafeInterrupt(tmp_path)
    resumed = fit(StepSeed(), again, ckpt_path=latest_checkpoint(tmp_path), accumulate_grad_batches=2)
    assert stopped.losses + resumed.losses == whole.losses
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert again.exit_code is None


def test_a_run_that_must_not_stop_early_stops_all_the_same(tmp_path: Path) -> None:
    guard = SafeInterrupt(tmp_path)
    fit(SignalAt(1), guard, min_steps=10, min_epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step=00000002.ckpt"]


def test_no_validation_that_the_uninterrupted_run_would_not_do(tmp_path: Path) -> None:
    validations = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
            validations.append(trainer.global_step)

    module = fit(Watch(), SignalAt(7), SafeInterrupt(tmp_path), module=Tiny(validates=True))
    assert validations == [6]
    assert module.trainer.limit_val_batches == 1.0


def test_the_checkpoint_callback_saves_once_and_counts_it(tmp_path: Path) -> None:
    saves = []

    class Watch(L.Callback):
        def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
            saves.append(trainer.global_step)

    saver = Checkpoint(tmp_path, every_n_steps=4, keep=1)
    fit(Watch(), SignalAt(7), saver, SafeInterrupt(tmp_path))
    assert saves == [4, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["step=00000008.ckpt"]
    assert saver.last_path == step_checkpoint(tmp_path, 8)


def test_state_of_callbacks_that_come_later_in_the_list_is_saved(tmp_path: Path) -> None:
    class Counts(L.Callback):
        count = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

    fit(SafeInterrupt(tmp_path), SignalAt(4), Counts())
    saved = torch.load(latest_checkpoint(tmp_path) or "", weights_only=True)
    assert saved["callbacks"]["test_state_of_callbacks_that_come_later_in_the_list_is_saved.<locals>.Counts"] == {
        "count": 5
    }


def test_the_handlers_of_before_are_back_after_an_end_and_after_an_error(tmp_path: Path) -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("mine"))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        fit(SafeInterrupt(tmp_path), max_steps=1)
        os.kill(os.getpid(), signal.SIGTERM)

        class Fails(Tiny):
            def training_step(self, *_: Any) -> torch.Tensor:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fit(SafeInterrupt(tmp_path), module=Fails())
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert received == ["mine", "mine"]
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_data_worker_outlives_ctrl_c(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C reaches every process of the terminal; the batches of the last step still have to come."""

    class Forks(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            worker = os.fork()
            if worker == 0:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                os._exit(0)
            assert os.waitpid(worker, 0)[1] == 0

    guard = SafeInterrupt(tmp_path)
    fit(Forks(), guard, max_steps=1)
    assert guard.exit_code is None
    assert "stopping" not in capfd.readouterr().err


def run_script(*arguments: object) -> tuple[int, str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_stops_at_once(tmp_path: Path, name: str, code: int) -> None:
    returned, output = run_script(tmp_path, 1, "step=3", 0, name, "again")
    assert returned == code, output
    assert f"{name}: stopping with a checkpoint; a second signal stops at once" in output
    assert latest_checkpoint(tmp_path) is None


def test_a_signal_during_set_up_leaves_at_once(tmp_path: Path) -> None:
    returned, output = run_script(tmp_path, 1, "setup", 0, "SIGTERM")
    assert returned == 143, output
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("who", ["main", "child", "both"])
def test_two_processes_stop_together(tmp_path: Path, who: str) -> None:
    signals = {"main": [0, "SIGTERM"], "child": [1, "SIGTERM"], "both": [0, "SIGTERM", 1, "SIGTERM"]}[who]
    returned, output = run_script(tmp_path, 2, "step=3", *signals)
    assert returned == 143, output
    assert set(re.findall(r"rank \d step \d exit code \d+", output)) == {
        "rank 0 step 4 exit code 143",
        "rank 1 step 4 exit code 0",
    }
    assert latest_checkpoint(tmp_path) == step_checkpoint(tmp_path, 4)


@pytest.mark.slow
def test_the_main_process_takes_its_children_along(tmp_path: Path) -> None:
    returned, output = run_script(tmp_path, 2, "setup", 0, "SIGTERM")
    assert returned == 143, output


@pytest.mark.parametrize("fails", [True, False])
def test_a_process_forked_during_or_after_a_run_can_be_ended(tmp_path: Path, fails: bool) -> None:
    """Lightning leaves our handler in place after an error, and a pool, for one, ends its processes by SIGTERM."""
    codes: list[int | None] = []

    def end_a_process() -> None:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.1)
        child.terminate()
        child.join(10)
        codes.append(child.exitcode)
        child.kill()

    class Step(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            if fails:
                raise RuntimeError("no")
            if not codes:
                end_a_process()

    if fails:
        with pytest.raises(RuntimeError, match="no"):
            fit(SafeInterrupt(tmp_path), Step())
        end_a_process()
    else:
        fit(SafeInterrupt(tmp_path), Step())
    assert codes == [-signal.SIGTERM]
