"""Dropout's noise after a resume is that of the uninterrupted run."""

from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_run import Tiny, fit, weights

from callbacks import StepSeed


@pytest.mark.parametrize("disturb", [False, True])
def test_noise_does_not_depend_on_what_ran_before(disturb: bool) -> None:
    class Disturb(L.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            torch.rand(3)

    first = fit(StepSeed(seed=5))
    second = fit(*([Disturb()] if disturb else []), StepSeed(seed=5))
    assert second.losses == first.losses


def test_another_seed_is_other_noise() -> None:
    assert fit(StepSeed(seed=5)).losses != fit(StepSeed(seed=6)).losses


def test_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    class SaveInside(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "8.ckpt")

    whole = fit(StepSeed(), SaveInside())
    torch.rand(7)
    resumed = fit(StepSeed(), module=Tiny(), ckpt_path=tmp_path / "8.ckpt")
    assert resumed.losses == whole.losses[8:]
    assert all(map(torch.equal, weights(resumed), weights(whole)))
