"""Every checkpoint continues the run exactly; the right ones are kept."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from tiny_run import Tiny, fit, trainer, weights

from callbacks import Checkpoint, StepSeed
from relax.checkpoint_io import AtomicCheckpointIO, latest_checkpoint, step_checkpoint
from relax.errors import UserError


class Hooks(L.Callback):
    """What a callback sees of a run, Lightning's step for loggers included."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        batches = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.seen.append(("batch", trainer.global_step, trainer.current_epoch, batches, trainer.is_last_batch))

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(("validation", trainer.global_step))


def after(seen: list[tuple[Any, ...]], step: int) -> list[tuple[Any, ...]]:
    """What follows an optimizer step and the validation that belongs to it."""
    completed = next(i for i, what in enumerate(seen) if what[1] == step)
    return seen[completed + 1 :][seen[completed + 1 : completed + 2] == [("validation", step)] :]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "validation inside and at the end of epochs": {"val_check_interval": 3},
    "validation counted over epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 15},
    "accumulation and validation": {"val_check_interval": 2, "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_checkpoint_continues_the_run_bit_for_bit(tmp_path: Path, layout: str) -> None:
    validates = "val_check_interval" in LAYOUTS[layout]
    monitor = "val/loss" if validates else None
    arguments: dict[str, Any] = {"max_epochs": 2, "module": Tiny(validates=validates)} | LAYOUTS[layout]
    hooks = Hooks()
    saver = Checkpoint(tmp_path / "all", every_n_steps=1, keep=99, monitor=monitor)
    whole = fit(StepSeed(), hooks, saver, **arguments)
    files = sorted((tmp_path / "all").iterdir())
    steps = {int(torch.load(file, weights_only=True)["global_step"]) for file in files}
    assert steps == set(range(1, whole.global_step + 1))
    for file in files:
        step = int(torch.load(file, weights_only=True)["global_step"])
        again, hooks_again = Checkpoint(tmp_path / "again", keep=1, monitor=monitor), Hooks()
        arguments["module"] = Tiny(validates=validates)
        resumed = fit(StepSeed(), hooks_again, again, ckpt_path=file, **arguments)
        assert resumed.losses == [(at, loss) for at, loss in whole.losses if at >= step], file.name
        assert hooks_again.seen == after(hooks.seen, step), file.name
        assert all(map(torch.equal, weights(resumed), weights(whole)))
        assert (again.best_value, again.best_step) == (saver.best_value, saver.best_step)
        shutil.rmtree(tmp_path / "again", ignore_errors=True)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    longer = fit(StepSeed(), module=Tiny(validates=True), max_epochs=3)
    fit(StepSeed(), Checkpoint(tmp_path, monitor="val/loss"), module=Tiny(validates=True), max_epochs=2)
    resumed = fit(StepSeed(), module=Tiny(validates=True), max_epochs=3, ckpt_path=latest_checkpoint(tmp_path))
    assert resumed.losses == longer.losses[12:]
    assert all(map(torch.equal, weights(resumed), weights(longer)))


def test_the_newest_and_the_last_are_kept(tmp_path: Path) -> None:
    saver = Checkpoint(tmp_path, every_n_steps=4, keep=2)
    fit(saver)
    assert names(tmp_path) == ["step=00000016.ckpt", "step=00000018.ckpt"]
    assert saver.last_path == tmp_path / "step=00000018.ckpt"


def test_nothing_at_the_end_unless_wanted(tmp_path: Path) -> None:
    fit(Checkpoint(tmp_path, every_n_steps=5, save_at_end=False))
    assert names(tmp_path) == ["step=00000010.ckpt", "step=00000015.ckpt"]


@pytest.mark.parametrize(("mode", "choose"), [("min", min), ("max", max)])
def test_the_best_is_the_best_of_all_validations(tmp_path: Path, mode: Any, choose: Any) -> None:
    class Record(L.Callback):
        values: dict[int, float] = {}  # noqa: RUF012

        def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.values[trainer.global_step] = float(trainer.callback_metrics["val/loss"])

    record, saver = Record(), Checkpoint(tmp_path, monitor="val/loss", mode=mode, save_at_end=False)
    fit(record, saver, module=Tiny(validates=True), val_check_interval=2)
    best = choose(record.values, key=lambda step: record.values[step])
    assert (saver.best_step, saver.best_value) == (best, record.values[best])
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == best
    assert saver.best_model_path == str(tmp_path / "best.ckpt")


def test_lightning_finds_the_best(tmp_path: Path) -> None:
    run = trainer(Checkpoint(tmp_path, monitor="val/loss"), max_epochs=2)
    run.fit(Tiny(validates=True))
    run.validate(Tiny(validates=True), ckpt_path="best")
    assert run.callback_metrics["val/loss"] == pytest.approx(run.checkpoint_callbacks[0].best_value)


def test_no_best_inside_an_accumulation_window(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="multiple of accumulate_grad_batches"):
        fit(
            Checkpoint(tmp_path, monitor="val/loss"),
            module=Tiny(validates=True),
            val_check_interval=3,
            accumulate_grad_batches=2,
            max_steps=2,
        )
    assert names(tmp_path) == ["step=00000002.ckpt"]


def test_the_sanity_check_is_no_validation(tmp_path: Path) -> None:
    saver = Checkpoint(tmp_path, monitor="val/loss")
    fit(saver, module=Tiny(validates=True), num_sanity_val_steps=2, max_epochs=1)
    assert saver.best_step == 6


def test_early_stopping_leaves_the_last_step(tmp_path: Path) -> None:
    stop = EarlyStopping("train/loss", patience=0, mode="max", check_on_train_epoch_end=True)
    module = fit(stop, Checkpoint(tmp_path))
    assert module.trainer.global_step < 18
    assert names(tmp_path) == [f"step={module.trainer.global_step:08d}.ckpt"]


def test_a_stop_that_comes_too_late_to_save_is_told(tmp_path: Path) -> None:
    class Stops(Tiny):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = self.global_step == 3

    with pytest.warns(UserWarning, match=r"stopped at step 3 .*step=00000002"):
        fit(Checkpoint(tmp_path, every_n_steps=2), module=Stops())


def test_what_a_killed_run_left_is_cleared_and_a_superseded_future_set_aside(tmp_path: Path) -> None:
    fit(StepSeed(), Checkpoint(tmp_path, every_n_steps=3, keep=9))
    (tmp_path / "step=00000021.ckpt.tmp-1").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"starts at step 6: renamed step=00000009\.ckpt, .*18\.ckpt"):
        fit(StepSeed(), Checkpoint(tmp_path, keep=9), ckpt_path=step_checkpoint(tmp_path, 6), max_steps=7)
    assert names(tmp_path) == [
        "step=00000003.ckpt",
        "step=00000006.ckpt",
        "step=00000007.ckpt",
        *(f"step={step:08d}.ckpt.old" for step in (9, 12, 15, 18)),
    ]


def test_checkpoints_are_written_atomically_without_being_told(tmp_path: Path) -> None:
    run = trainer(Checkpoint(tmp_path), max_steps=1)
    run.fit(Tiny())
    assert type(run.strategy.checkpoint_io) is AtomicCheckpointIO


def test_a_period_and_a_metric_side_by_side(tmp_path: Path) -> None:
    periodic = Checkpoint(tmp_path, every_n_steps=5, keep=1)
    fit(periodic, Checkpoint(tmp_path, monitor="val/loss", save_at_end=False), module=Tiny(validates=True))
    assert names(tmp_path) == ["best.ckpt", "step=00000018.ckpt"]


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep .* above 0, got 0"):
        Checkpoint(tmp_path, keep=0)
    with pytest.raises(UserError, match="got sideways"):
        Checkpoint(tmp_path, mode="sideways")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got val/accuracy; logged.* val/loss"):
        fit(Checkpoint(tmp_path, monitor="val/accuracy"), module=Tiny(validates=True), max_epochs=1)
