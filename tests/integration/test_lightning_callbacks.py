"""Lightning's own callbacks, and a user's, on our trainers."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from trainers import SFTTrainer


def train(make_llama: Callable, tokenizer: Any, unequal_rows: Callable, *callbacks: L.Callback, **more: Any) -> Any:
    options: dict[str, Any] = {"accelerator": "cpu", "batch_size": 8, "max_epochs": 4, "learning_rate": 1e-2}
    options |= {"enable_progress_bar": False} | more
    return SFTTrainer(
        make_llama(),
        tokenizer,
        train_dataset=unequal_rows(),
        val_dataset=unequal_rows(6, seed=1),
        callbacks=callbacks,
        **options,
    ).train()


def test_early_stopping_stops_on_our_figures(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    stopper = EarlyStopping("val/loss", min_delta=100.0, patience=1)
    trainer = train(make_llama, tokenizer, unequal_rows, stopper, max_epochs=50)
    assert trainer.trainer.current_epoch == 2
    on_step = EarlyStopping("train/loss", stopping_threshold=100.0, check_on_train_epoch_end=True)
    assert train(make_llama, tokenizer, unequal_rows, on_step, max_epochs=50).trainer.current_epoch == 1


def test_monitors_and_loggers_receive_figures(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="csv", version="")
    train(make_llama, tokenizer, unequal_rows, LearningRateMonitor("step"), DeviceStatsMonitor(), logger=logger)
    header = (tmp_path / "csv/metrics.csv").read_text().splitlines()[0]
    for name in ("train/loss", "train/entropy", "train/grad_norm", "val/perplexity", "lr-", "cpu_percent"):
        assert name in header, name


def test_rich_progress_bar_timer_and_model_checkpoint(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable, tmp_path: Path, capsys: Any
) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="val/loss", filename="best", save_weights_only=False)
    timer = Timer(timedelta(minutes=5))
    trainer = train(make_llama, tokenizer, unequal_rows, RichProgressBar(), timer, saver, enable_progress_bar=True)
    assert timer.time_elapsed() > 0
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] <= trainer.trainer.global_step
    assert "Epoch" in capsys.readouterr().out


def test_weight_averaging_ends_with_averaged_weights(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    plain = train(make_llama, tokenizer, unequal_rows).model
    averaged = train(make_llama, tokenizer, unequal_rows, WeightAveraging(avg_fn=None)).model
    assert not torch.equal(plain.lm_head.weight, averaged.lm_head.weight)
    assert averaged.lm_head.weight.isfinite().all()


def test_a_users_own_callback_sees_public_figures_and_can_steer(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    class Halve(L.Callback):
        """Gradient noise studies and the like: reads the batch and the metrics, changes the rate."""

        def __init__(self) -> None:
            self.tokens, self.losses = 0, []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.tokens += batch.num_tokens
            self.losses.append(trainer.callback_metrics["train/loss"].item())
            for group in trainer.optimizers[0].param_groups:
                group["lr"] /= 2

    own = Halve()
    trainer = train(make_llama, tokenizer, unequal_rows, own, schedule="constant", max_epochs=1)
    assert own.tokens == int(trainer.train_data.lengths.sum())
    assert len(own.losses) == 3
