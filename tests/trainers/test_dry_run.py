"""A rehearsal trains the step that needs most, tells what it took, and writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relax.data.batching.epoch import PlannedBatches
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
    assert result.micro_batches == LargestStep(batches).micro_batches
    assert trainer.trainer.global_step == 1
    assert 0 < result.loss < 10
    assert result.peak_bytes > 2**20
    assert "Nothing was written" in str(result)
    assert not [*tmp_path.iterdir()]
