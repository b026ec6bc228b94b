"""KL schedules and SyncReference beside a real GRPOTrainer: they steer it, and it resumes bit for bit with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_run import weights

from callbacks import AdaptiveKL, Checkpoint, CosineKL, LinearKL, MetricsFile, SyncReference
from relax.checkpoint_io import step_checkpoint
from relax.errors import UserError
from relax.lora import LoRASettings, add_lora
from relax.tasks.sorting import Sorting
from trainers import GRPOTrainer

STEPS = 10
"""Optimizer steps; an iteration has 4."""


class Watch(L.Callback):
    """The coefficient of every optimizer step, and the KL that each iteration began with."""

    def __init__(self) -> None:
        self.coefs: list[float] = []
        self.kls: list[float | None] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, GRPOTrainer)
        assert pl_module.experience is not None
        self.coefs.append(pl_module.kl_coef)
        self.kls.append(pl_module.experience.kl())


def build(*callbacks: L.Callback, lora: bool = False, **settings: Any) -> GRPOTrainer:
    task = Sorting()
    model: Any = task.build_model()
    arguments: dict[str, Any] = {
        **{"train_dataset": task.prompt_rows(64), "rewards": task.rewards, "max_new_tokens": 6},
        **{"batch_size": 16, "num_generations": 4, "steps_per_generation": 2, "num_iterations": 2},
        **{"learning_rate": 1e-2, "schedule": "constant", "preset": "grpo", "kl_coef": 0.2, "max_steps": STEPS},
        **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False},
    }
    if lora:
        model = add_lora(model, LoRASettings(r=2))
    return GRPOTrainer(model, task.build_tokenizer(), callbacks=list(callbacks), **arguments | settings)


CALLBACKS: dict[str, Callable[[], list[L.Callback]]] = {
    "linear to 0 within an iteration": lambda: [LinearKL(end=0, steps=6)],
    "cosine": lambda: [CosineKL(end=0.5, steps=9)],
    "adaptive": lambda: [AdaptiveKL(target=0.05, horizon=40)],
    "adaptive, reference follows": lambda: [AdaptiveKL(target=0.05, horizon=40), SyncReference(3, mix=0.6)],
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    """In the middle of an iteration, and at its end."""

    def run(folder: Path, *others: L.Callback, **settings: Any) -> tuple[GRPOTrainer, Watch, list[dict[str, Any]]]:
        watch, metrics = Watch(), MetricsFile(folder / "metrics.jsonl")
        module = build(*CALLBACKS[name](), watch, metrics, *others, **settings).train()
        rows = [json.loads(line) for line in metrics.path.read_text().splitlines()]
        return module, watch, rows

    (tmp_path / "whole").mkdir()
    whole, watch, rows = run(tmp_path / "whole", Checkpoint(tmp_path, every_n_steps=1, keep=99))
    assert len(set(watch.coefs)) > 2
    assert [row["train/kl_coef"] for row in rows] == pytest.approx(watch.coefs, rel=1e-6)
    for step in (3, 4, 7, 8):
        folder = tmp_path / f"from {step}"
        folder.mkdir()
        resumed, again, rows_again = run(folder, resume=step_checkpoint(tmp_path, step))
        assert again.coefs == watch.coefs[step:]
        assert [row["train/loss"] for row in rows_again] == [row["train/loss"] for row in rows[step:]]
        assert all(map(torch.equal, weights(resumed), weights(whole))), step


def test_adaptive_measures_the_iteration_that_ends() -> None:
    watch = Watch()
    build(watch, AdaptiveKL(target=0.05, horizon=40)).train()
    expected, coef = [], 0.2
    for step in range(STEPS):
        expected.append(coef)
        kl = watch.kls[step]
        if step % 4 == 3:
            assert kl is not None
            coef *= 1 + min(max(kl / 0.05 - 1, -0.2), 0.2) * 32 / 40  # 2 steps of 16 completions
    assert watch.coefs == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) == 3


def test_a_synchronised_reference_is_the_policy_and_its_kl_starts_anew() -> None:
    """Synchronised with every iteration's last step: the next one is sampled by its own reference."""
    free, synchronised = Watch(), Watch()
    build(free).train()
    module = build(synchronised, SyncReference(every_n_steps=4)).train()
    assert free.kls[4] is not None
    assert free.kls[4] > 1e-3
    assert synchronised.kls == pytest.approx([0] * STEPS, abs=1e-5)
    assert module.reference is not None
    assert not all(map(torch.equal, weights(module.reference), weights(module.model)))  # 2 steps ago


def test_what_a_trainer_has_no_reference_for_is_refused() -> None:
    with pytest.raises(UserError, match="which GRPOTrainer has not: under LoRA"):
        build(SyncReference(1), lora=True).train()
    with pytest.raises(UserError, match="which GRPOTrainer has not"):
        build(SyncReference(1), kl_coef=0.0).train()
    with pytest.raises(UserError, match="LinearKL needs a KL coefficient above 0 to start from, got 0"):
        build(LinearKL(0.1, 5), kl_coef=0.0).train()


def test_a_schedule_works_under_lora() -> None:
    watch = Watch()
    build(watch, LinearKL(end=0.1, steps=5), lora=True, max_steps=5).train()
    assert watch.coefs == pytest.approx([0.2, 0.18, 0.16, 0.14, 0.12], rel=1e-12)
