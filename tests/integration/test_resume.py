"""A run that is killed and resumed is, bit for bit, the run that was not."""

import json
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killing import KillAt, SignalAt
from lightning.pytorch.callbacks import EarlyStopping

from callbacks import SafeInterrupt, default_callbacks
from relax.errors import UserError
from relax.lora import LoRASettings, add_lora
from trainers import SFTTrainer

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_epochs": 3,
    "learning_rate": 1e-2,
    "schedule": "linear",
    "warmup_steps": 2,
    "gradient_clip_val": 1.0,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


def run(folder: Path, model: Any, tokenizer: Any, rows: Any, *extra: Any, **settings: Any) -> SFTTrainer:
    watchers = [*default_callbacks(folder, checkpoint_every_n_steps=2, progress=False), *extra]
    trainer = SFTTrainer(
        model, tokenizer, train_dataset=rows, output_dir=folder, callbacks=watchers, **(SETTINGS | settings)
    )
    return trainer.train()


def in_child(function: Callable[[], object]) -> int | None:
    """Run in a forked process, so that it can be killed; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(120)
    return child.exitcode


def history(folder: Path) -> list[dict[str, float]]:
    """Every logged step, without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("throughput/")} for row in rows]


def weights(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "model").glob("*.safetensors")}


VARIANTS = {
    "mid-epoch": ({}, KillAt(3)),
    "inside an accumulation window": ({}, KillAt(7, micro_batch=1)),
    "first step of an epoch": ({}, KillAt(6)),
    "data workers": ({"data_workers": 2}, KillAt(9)),
    "validation between": ({"val_every_n_steps": 2}, KillAt(5)),
    "before the first checkpoint": ({}, KillAt(1)),
    "EarlyStopping, validation at the end of an epoch": ({"early_stopping": True, "val": True}, KillAt(6)),
    "EarlyStopping, inside an epoch": ({"early_stopping": True, "val": True}, KillAt(9)),
    "gradient checkpointing": ({"gradient_checkpointing": True}, KillAt(9)),
    "micro-batches by tokens": ({"micro_batch_size": None, "max_tokens_per_micro_batch": 110}, KillAt(7)),
    "packed sequences": ({"batch_size": 2, "micro_batch_size": 1, "packing_length": 90, "max_epochs": 6}, KillAt(7)),
    "noise on embeddings, other losses": ({"neftune_alpha": 5.0, "loss": "dft", "z_loss": 1e-3}, KillAt(7)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_kill_9_and_resume_is_bit_for_bit(
    name: str, tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    settings, kill = VARIANTS[name]
    rows = unequal_rows(22)
    settings = dict(settings)
    stops_early = settings.pop("early_stopping", False)
    if settings.pop("val", False) or "val_every_n_steps" in settings:
        settings["val_dataset"] = unequal_rows(5, seed=1)

    def start(folder: str, *extra: Any, **more: Any) -> None:
        model = make_llama(attention_dropout=0.2)
        stoppers = [EarlyStopping("val/loss", patience=9)] if stops_early else []
        run(tmp_path / folder, model, tokenizer, rows, *stoppers, *extra, **settings, **more)

    assert in_child(lambda: start("whole")) == 0
    assert in_child(lambda: start("killed", kill)) == -signal.SIGKILL
    assert in_child(lambda: start("killed", resume="auto")) == 0
    assert len(history(tmp_path / "whole")) >= 18
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_lora_resumes_bit_for_bit_from_a_checkpoint_that_holds_the_adapter_only(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(folder: str, *extra: Any, **more: Any) -> None:
        torch.manual_seed(5)
        model = add_lora(make_llama(), LoRASettings(4, dropout=0.3))
        run(tmp_path / folder, model, tokenizer, unequal_rows(22), *extra, **more)

    assert in_child(lambda: start("whole")) == 0
    assert in_child(lambda: start("killed", KillAt(9))) == -signal.SIGKILL
    saved = torch.load(next((tmp_path / "killed" / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert saved["state_dict"]
    assert all("lora_" in key for key in saved["state_dict"])
    assert in_child(lambda: start("killed", resume="auto")) == 0
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_a_step_with_a_checkpoint_and_resumes_bit_for_bit(
    signum: int, code: int, tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(folder: str, *extra: Any, **more: Any) -> None:
        trainer = run(tmp_path / folder, make_llama(), tokenizer, unequal_rows(22), *extra, **more)
        interrupt = next(c for c in trainer.trainer.callbacks if isinstance(c, SafeInterrupt))
        sys.exit(interrupt.exit_code)

    assert in_child(lambda: start("whole")) == 0
    assert in_child(lambda: start("stopped", SignalAt(7, signum))) == code
    assert (tmp_path / "stopped/checkpoints/step=00000008.ckpt").exists()
    assert in_child(lambda: start("stopped", resume="auto")) == 0
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    kill = SignalAt(7, signal.SIGINT, times=2)
    code = in_child(lambda: run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(22), kill))
    assert code == 130
    assert not (tmp_path / "run/checkpoints/step=00000008.ckpt").exists()


def test_a_folder_that_holds_another_run_is_not_overwritten_unasked(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(**more: Any) -> None:
        run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(8), **more)

    start(max_epochs=1)
    before = history(tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume=auto"):
        start(max_epochs=2)
    assert history(tmp_path / "run") == before
    start(max_epochs=2, overwrite=True)
    assert len(history(tmp_path / "run")) == 2 * len(before)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="which holds other files"):
        run(tmp_path / "foreign", make_llama(), tokenizer, unequal_rows(8), overwrite=True)
    assert (tmp_path / "foreign" / "thesis.tex").exists()


def test_resuming_with_other_data_or_another_model_is_refused(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(model: Any, rows: Any, **more: Any) -> None:
        run(tmp_path / "run", model, tokenizer, rows, **more)

    start(make_llama(), unequal_rows(8), max_steps=3)
    with pytest.raises(ValueError, match="can only be resumed with the same data"):
        start(make_llama(), unequal_rows(9), max_steps=5, resume="auto")
    with pytest.raises(ValueError, match="can only be resumed with the same batch_size: the checkpoint has 4"):
        start(make_llama(), unequal_rows(8), max_steps=5, resume="auto", batch_size=8)
    with pytest.raises(ValueError, match="the checkpoint belongs to another model: model.*there and.*here"):
        start(make_llama(hidden_size=32), unequal_rows(8), max_steps=5, resume="auto")
    with pytest.raises(ValueError, match="the checkpoint belongs to another model"):
        start(add_lora(make_llama(), LoRASettings(4)), unequal_rows(8), max_steps=5, resume="auto")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(folder: str, **more: Any) -> None:
        run(tmp_path / folder, make_llama(), tokenizer, unequal_rows(22), schedule="constant", **more)

    start("whole", max_steps=12)
    start("cut", max_steps=8)
    newest = tmp_path / "cut/checkpoints/step=00000008.ckpt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.warns(UserWarning, match="passing over the checkpoint .*step=00000008"):
        start("cut", max_steps=12, resume="auto")
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_config_is_written_and_holds_every_setting(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(8), max_steps=1)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["batch_size"] == 4
    assert config["schedule"] == "linear"
    assert config["max_length"] == 1024


CHANGES = [
    {"learning_rate": 1e-3},
    {"optimizer": "sgd"},
    {"group_by_length": True},
    {"seed": 1},
    {"schedule": "cosine"},
    {"betas": (0.9, 0.95)},
]


@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_what_a_resumed_run_could_not_honour_is_refused_and_leaves_the_configuration_alone(
    change: dict, tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(8), max_steps=3)
    before = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(ValueError, match=f"can only be resumed with the same {next(iter(change))}"):
        run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(8), max_steps=5, resume="auto", **change)
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_a_run_that_failed_before_its_first_step_does_not_hold_its_folder(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    model = make_llama().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        run(tmp_path / "run", model, tokenizer, unequal_rows(8))
    run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(8))
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_a_finished_run_is_made_longer_bit_for_bit(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(folder: str, epochs: int, **more: Any) -> None:
        stopper = EarlyStopping("val/loss", patience=9)
        settings = {"schedule": "constant", "val_dataset": unequal_rows(5, seed=1), "max_epochs": epochs}
        run(tmp_path / folder, make_llama(), tokenizer, unequal_rows(22), stopper, **settings, **more)

    start("whole", 3)
    start("longer", 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not resumable.*")
        start("longer", 3, resume="auto")
    assert history(tmp_path / "longer") == history(tmp_path / "whole")
    assert weights(tmp_path / "longer") == weights(tmp_path / "whole")


def test_max_time_ends_with_a_checkpoint_of_a_whole_step(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    settings = {"max_time": {"seconds": 1}, "max_epochs": -1, "schedule": "constant", "micro_batch_size": 1}
    trainer = run(tmp_path / "run", make_llama(), tokenizer, unequal_rows(22), **settings)
    steps = trainer.trainer.global_step
    assert (tmp_path / f"run/checkpoints/step={steps:08d}.ckpt").exists()


def test_an_adapter_on_another_base_or_of_another_scale_is_refused(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def start(base: Any, alpha: int, **more: Any) -> None:
        run(tmp_path / "run", add_lora(base, LoRASettings(4, alpha=alpha)), tokenizer, unequal_rows(8), **more)

    start(make_llama(), 8, max_steps=3)
    other = make_llama()
    other.lm_head.weight.data += 1
    for base, alpha in ((other, 8), (make_llama(), 16)):
        with pytest.raises(ValueError, match="can only be resumed with the same frozen weights"):
            start(base, alpha, max_steps=5, resume="auto")


@pytest.mark.parametrize("change", [{"max_epochs": 2}, {"layout": "padded"}])
def test_a_budget_of_tokens_that_cuts_steps_otherwise_is_another_place_in_the_data(
    change: dict, tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    """More epochs, or padding, may need more micro-batches a step: the position would be that of other rows."""
    rows = unequal_rows(40, seed=2)
    settings = {"batch_size": 8, "micro_batch_size": None, "max_tokens_per_micro_batch": 100, "schedule": "constant"}
    settings |= {"warmup_steps": None, "max_epochs": 1}
    run(tmp_path, make_llama(), tokenizer, rows, **settings)
    step = tmp_path / "checkpoints/step=00000004.ckpt"
    with pytest.raises(UserError, match="can only be resumed with the same number of micro-batches a step"):
        run(tmp_path, make_llama(), tokenizer, rows, resume=str(step), **(settings | change))
