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
    monkeypatch.setattr(SFTTrainer, "gradient_norms", lambda self: {"grad_norm": torch.tensor(0.0)})
    theirs = fit(make_llama(), tokenizer, unequal_rows(), gradient_clip_algorithm=algorithm)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_logging_and_clipping_share_one_computation_after_all_callbacks(
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
    assert len(computed) == 6, "once for the guard, once for logging and clipping"
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


def test_clipping_goes_by_the_gradients_as_the_last_callback_leaves_them(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    class Scale(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            for parameter in module.parameters():
                parameter.grad.mul_(100)

    model = make_llama().double()
    before = [p.detach().clone() for p in model.parameters()]
    settings = {"optimizer": "sgd", "learning_rate": 1.0, "max_steps": 1, "schedule": "constant", "betas": (0.0, 0.9)}
    fit(model, tokenizer, unequal_rows(8), NaNGuard(), Scale(), gradient_clip_val=0.1, **settings)
    update = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]).norm()
    assert float(update) == pytest.approx(0.1, rel=1e-4)


def test_an_interrupted_run_leaves_nothing_to_the_next(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    class Dies(L.Callback):
        armed = True

        def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
            if self.armed and trainer.global_step == 1 and module._figures.count:
                raise KeyError("mine")

    def losses(module: SFTTrainer) -> float:
        return float(module.trainer.callback_metrics["train/loss"])

    settings = {"accelerator": "cpu", "precision": "64-true", "enable_progress_bar": False, "batch_size": 8}
    settings |= {"micro_batch_size": 4, "learning_rate": 1e-12}
    dies = Dies()
    module = SFTTrainer(make_llama(), tokenizer, train_dataset=unequal_rows(24), callbacks=[dies], **settings)
    with pytest.raises(KeyError, match="mine"):
        module.train()
    dies.armed = False
    whole = SFTTrainer(make_llama(), tokenizer, train_dataset=unequal_rows(24), **settings).train()
    assert losses(module.train()) == pytest.approx(losses(whole), rel=1e-6)
