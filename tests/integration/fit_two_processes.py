"""Run by test_two_processes.py: one fit on two processes, its gradients written by rank 0."""

import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "trainers")]
from conftest import build_llama, build_unequal_rows  # noqa: E402
from test_batch_layout import fit  # noqa: E402

from relax.tasks.sorting import Sorting  # noqa: E402

if __name__ == "__main__":
    log, trainer = fit(
        build_llama(),
        Sorting().build_tokenizer(),
        build_unequal_rows(21),
        val_dataset=build_unequal_rows(5, seed=1),
        devices=2,
        strategy="ddp",
        **json.loads(sys.argv[2]),
    )
    assert trainer.trainer.world_size == 2
    if trainer.global_rank == 0:
        figures = {name: value.item() for name, value in trainer.trainer.callback_metrics.items()}
        torch.save({"gradients": log.gradients, "figures": figures}, sys.argv[1])
