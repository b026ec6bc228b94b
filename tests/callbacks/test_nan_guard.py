"""A bad loss or gradient never reaches the weights, and the message says where to look."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny_run import ROWS, Tiny, data, fit, weights
from torch import nn
from torch.utils.data import DataLoader

from callbacks import Checkpoint, NaNGuard
from relax.errors import NonFiniteLoss, TrainingStopped, UserError

SCRIPT = Path(__file__).with_name("nan_run.py")


@dataclass(frozen=True)
class RowBatch:
    x: torch.Tensor
    y: torch.Tensor
    rows: list[int]


class Poisoned(Tiny):
    """Micro-batch i holds rows 2 i and 2 i + 1; what lies in row 7 is not a number."""

    def __init__(self, poison: float = float("nan")) -> None:
        super().__init__(batches=ROWS // 2)
        self.poison = poison

    def train_dataloader(self) -> Any:
        x, y = data()
        y[7] = self.poison
        batches = [RowBatch(x[i : i + 2], y[i : i + 2], [i, i + 1]) for i in range(0, ROWS, 2)]
        return DataLoader(batches, batch_size=None)

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        return batch

    def training_step(self, batch: RowBatch, batch_idx: int) -> torch.Tensor:
        self.before = weights(self)
        return nn.functional.mse_loss(self.net(batch.x), batch.y)


class Knowing(Poisoned):
    def row_losses(self, batch: RowBatch) -> dict[int, float]:
        losses = (self.net(batch.x) - batch.y).square().flatten()
        return dict(zip(batch.rows, losses.tolist(), strict=True))


def message(module: Poisoned, *callbacks: Any, **arguments: Any) -> str:
    with pytest.raises(NonFiniteLoss) as caught:
        fit(NaNGuard(), *callbacks, module=module, **arguments)
    assert all(map(torch.equal, module.before, weights(module)))
    return str(caught.value)


def test_step_micro_batch_and_rows_are_named() -> None:
    assert message(Poisoned()) == (
        "stopped before step 4, epoch 0: the loss is nan in micro-batch 3 (rows 6, 7); the weights are untouched, "
        "there is no checkpoint yet"
    )


def test_an_infinite_loss_counts_and_the_steps_before_it_are_counted() -> None:
    told = message(Poisoned(float("inf")), accumulate_grad_batches=2)
    assert told.startswith("stopped before step 2, epoch 0: the loss is inf in micro-batch 3 (rows 6, 7)")


def test_a_module_that_knows_its_rows_names_the_guilty_one() -> None:
    assert "(rows 7)" in message(Knowing())


def test_the_last_good_checkpoint_is_named(tmp_path: Path) -> None:
    told = message(Poisoned(), Checkpoint(tmp_path, every_n_steps=1))
    assert told.endswith(f"the last good checkpoint is {tmp_path / 'step=00000003.ckpt'}")


def test_a_bad_gradient_of_a_good_loss_is_stopped_too() -> None:
    class BadGradient(Poisoned):
        def __init__(self) -> None:
            super().__init__(poison=0.0)

        def training_step(self, batch: RowBatch, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            if 7 in batch.rows:
                loss = loss + (0 * self.net[0].weight).sum().sqrt()  # 0, with an infinite slope
            return loss

    told = message(BadGradient(), accumulate_grad_batches=2)
    assert "step 2" in told
    assert "the gradient is not finite although every loss here is (rows 4, 5, 6, 7)" in told


def test_it_looks_as_often_as_told() -> None:
    module = Poisoned()
    fit(NaNGuard(every_n_steps=8), module=module, max_steps=8)
    assert not all(p.isfinite().all() for p in weights(module))
    with pytest.raises(UserError, match="above 0, got 0"):
        NaNGuard(every_n_steps=0)


def test_plain_batches_are_fine_and_a_healthy_run_is_not_disturbed() -> None:
    assert fit(NaNGuard(), module=Tiny()).trainer.global_step == 18


def test_a_gradient_scaler_may_overflow() -> None:
    """Skipping such steps is the scaler's job; a loss that is NaN before it is scaled still stops the run."""
    guard, module = NaNGuard(), Tiny()
    run = fit(guard, module=module, max_steps=3, plugins=[MixedPrecision("16-mixed", "cpu")]).trainer
    guard.on_before_backward(run, module, torch.tensor(float("inf")))
    for p in module.parameters():
        p.grad = torch.full_like(p, float("inf"))
    guard.on_before_optimizer_step(run, module, torch.optim.SGD(module.parameters()))
    with pytest.raises(NonFiniteLoss):
        guard.on_before_backward(run, module, torch.tensor(float("nan")))


def test_it_is_a_stop_and_a_floating_point_error() -> None:
    assert issubclass(NonFiniteLoss, TrainingStopped)
    assert issubclass(NonFiniteLoss, FloatingPointError)


@pytest.mark.slow
def test_two_processes_stop_together_and_the_guilty_rank_names_the_rows() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert re.search(
        r"step 3, epoch 0 on rank 1: the loss is nan in micro-batch 2 \(rows 7\)", done.stdout + done.stderr
    )
    assert re.search(r"step 3, epoch 0 on rank 0: the gradient is not finite although", done.stdout + done.stderr)
    assert (done.stdout + done.stderr).count("weights untouched: True") == 2
