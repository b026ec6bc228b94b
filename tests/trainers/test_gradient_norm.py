"""The norm of a step's gradients: computed once, logged, and what clipping goes by."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from callbacks import NaNGuard
from trainers import SFTTrainer


def fit(model: Any, tokenizer: Any, rows: Any, *callbacks: L.Callback, **settings: Any) -> SFTTrainer:
    options = {"accelerator": "cpu", "precision": "64-true", "enable_progress_bar": False, "max_epochs": 1}
    options |= {"batch_size": 8, "learning_rate": 1e-2, "gradient_clip_val": 0.05}
    return SFTTrainer(model, tokenizer, train_dataset=rows, callbacks=callbacks, **(options | settings)).train()


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_clipping_is_lightnings(
    algorithm: str | None, make_llama: Callable, tokenizer: Any, unequal_rows: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = fit(make_llama(), tokenizer, unequal_rows(), gradient_clip_algorithm=algorithm)
    hook = L.LightningModule.configure_gradient_clipping
    monkeypatch.setattr(SFTTrainer, "configure_gradient_clipping", hook)
    monkeypatch.setattr(SFTTrainer, "gradient_norm", lambda self: torch.tensor(0.0))
    theirs = fit(make_llama(), tokenizer, unequal_rows(), gradient_clip_algorithm=algorithm)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_all_who_ask_share_one_computation_and_see_the_norm_before_clipping(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[float] = []
    original = torch.nn.utils.get_total_norm

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        norm = original(*args, **options)
        computed.append(float(norm))
        return norm

    monkeypatch.setattr("torch.nn.utils.get_total_norm", counted)
    trainer = fit(make_llama(), tokenizer, unequal_rows(24), NaNGuard())
    assert len(computed) == 3
    assert computed[-1] > 0.05
    assert float(trainer.trainer.callback_metrics["train/grad_norm"]) == pytest.approx(computed[-1])


def test_figures_of_steps_that_lightning_does_not_log_are_not_made(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            figure = trainer.callback_metrics.get("train/loss")
            seen.append((trainer.global_step, None if figure is None else float(figure), float(outputs["loss"])))

    fit(make_llama(), tokenizer, unequal_rows(24), Watch(), log_every_n_steps=2, max_epochs=2)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[0][1] is None
    assert seen[1][1] == pytest.approx(seen[1][2])
    assert seen[2][1] == seen[1][1]
    assert seen[3][1] == pytest.approx(seen[3][2])
