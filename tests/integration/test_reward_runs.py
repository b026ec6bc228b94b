"""Reward models: two processes train what one trains, and a killed run continues bit for bit."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import KillAt
from reward_run import figures, fit, random_pairs, scorer
from test_resume import history, in_child, weights
from two_ranks import on_two_ranks, said

from callbacks import default_callbacks
from relax.lora import LoRASettings, add_lora
from relax.sequence_classifier import load_classifier
from relax.tasks.sorting import Sorting
from trainers import RewardTrainer

CUTS: dict[str, dict[str, Any]] = {
    "count": {"micro_batch_size": 2},
    "tokens": {"max_tokens_per_micro_batch": 130},
    "padded": {"micro_batch_size": 1, "layout": "padded"},
    "packed sequences": {"batch_size": 2, "packing_length": 120, "micro_batch_size": 1},
}


def run_case(name: str, **settings: Any) -> dict[str, Any]:
    held_out = random_pairs(5, seed=1)
    gradients, trainer = fit(random_pairs(21), val_dataset=held_out, centering_coef=0.02, **CUTS[name] | settings)
    return {"gradients": gradients, "figures": figures(trainer)}


def test_two_processes_give_the_gradients_and_figures_of_one(tmp_path: Path) -> None:
    """21 pairs: the last step is smaller than what two processes x accumulation steps x pairs would take."""

    def both(rank: int) -> None:
        found = {name: run_case(name, devices=2, strategy="ddp") for name in CUTS}
        torch.save(found, tmp_path / f"found.{rank}")

    assert on_two_ranks(both, tmp_path) == [0, 0], said(tmp_path, 0)[-3000:] + said(tmp_path, 1)[-3000:]
    first, second = (torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in (0, 1))
    for name, cut in CUTS.items():
        alone = run_case(name, **({"micro_batch_size": 2} if "packing_length" in cut else {}))
        torch.testing.assert_close(first[name]["gradients"], alone["gradients"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(second[name]["gradients"], first[name]["gradients"], rtol=0, atol=0)
        assert first[name]["figures"] == pytest.approx(alone["figures"], rel=1e-5), name
        assert {"train/calibration_error", "val/calibration_error", "val/accuracy"} <= alone["figures"].keys()


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter and a fresh head"])
def test_kill_9_and_resume_is_bit_for_bit(lora: bool, tmp_path: Path) -> None:
    def model() -> Any:
        if not lora:
            return scorer(attention_dropout=0.2)
        base = load_classifier(str(Sorting().policy_folder), seed=4)
        torch.manual_seed(5)
        return add_lora(base, LoRASettings(4, dropout=0.3), task_type="SEQ_CLS")

    def start(folder: str, *extra: Any, **settings: Any) -> None:
        watchers = [*default_callbacks(tmp_path / folder, checkpoint_every_n_steps=2, progress=False), *extra]
        RewardTrainer(
            model(), Sorting().build_tokenizer(), train_dataset=random_pairs(), val_dataset=random_pairs(5, seed=1),
            batch_size=4, micro_batch_size=2, max_epochs=2, learning_rate=1e-2, gradient_clip_val=1.0, **settings,
            centering_coef=0.01, output_dir=tmp_path / folder, callbacks=watchers, enable_progress_bar=False,
            accelerator="cpu",
        ).train()  # fmt: skip

    assert in_child(lambda: start("whole")) == 0
    assert in_child(lambda: start("killed", KillAt(7, micro_batch=1))) == -signal.SIGKILL
    saved = torch.load(next((tmp_path / "killed" / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    assert any("score" in key for key in saved)
    assert not lora or all("lora_" in key or "score.modules_to_save" in key for key in saved)
    assert in_child(lambda: start("killed", resume="auto")) == 0
    assert len(history(tmp_path / "whole")) >= 12
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
