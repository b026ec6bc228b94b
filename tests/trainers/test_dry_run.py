"""A rehearsal trains the step that needs most, tells what it took, and writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from callbacks import Checkpoint
from relax.data.batching.epoch import PlannedBatches
from relax.errors import TrainingStopped
from trainers import SFTTrainer
from trainers.dry_run import LargestStep, largest_micro_batch

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 3}


@pytest.mark.parametrize("cut", [{"micro_batch_size": 2}, {"max_tokens_per_micro_batch": 120}])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_largest_micro_batch_is_tried_and_nothing_written(
    layout: str, cut: dict, tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    trainer = SFTTrainer(
        make_llama(), tokenizer, train_dataset=unequal_rows(40), batch_size=8, layout=layout, **QUIET, **cut
    )
    result = trainer.dry_run()
    batches = trainer._batches
    assert isinstance(batches, PlannedBatches)
    epoch = batches.epoch(0)
    assert result.tokens == max(largest_micro_batch(epoch, step) for step in range(len(epoch.steps)))
    assert result.tokens == max(epoch[i].input_ids.numel() for i in range(len(epoch)))
    assert 2 * result.micro_batches == LargestStep(batches).micro_batches
    assert trainer.trainer.global_step == 2, "the optimizer's state is in memory from the second step on only"
    assert 0 < result.loss < 10
    assert result.peak_bytes > 2**20
    assert "No run was written" in str(result)
    assert not [*tmp_path.iterdir()]


@pytest.mark.filterwarnings("error:the warm-up")
def test_settings_of_the_run_do_not_get_in_its_way_and_the_run_after_it_is_whole(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    trainer = SFTTrainer(
        make_llama(),
        tokenizer,
        train_dataset=unequal_rows(40),
        batch_size=8,
        warmup_steps=4,
        callbacks=[Checkpoint(tmp_path / "checkpoints"), RichProgressBar()],
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=10,
        limit_train_batches=4,
    )
    assert 0 < trainer.dry_run().loss < 10
    assert not [*tmp_path.iterdir()]
    assert trainer.train().trainer.global_step == 8


def test_a_loss_that_is_no_number_is_an_error(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    class Breaks(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            torch.nn.init.constant_(module.model.lm_head.weight, torch.nan)

    trainer = SFTTrainer(make_llama(), tokenizer, train_dataset=unequal_rows(), callbacks=[Breaks()], **QUIET)
    with pytest.raises(TrainingStopped, match="the loss of the step with the largest micro-batch is nan"):
        trainer.dry_run()
