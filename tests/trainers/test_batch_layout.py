"""The gradient of an optimizer step does not depend on how its batch is cut: fp64, strongly unequal lengths."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relax.data.tokens.tokenized import TokenizedDataset
from relax.errors import UserError
from trainers import SFTTrainer


class GradientLog(L.Callback):
    """The gradient and the weights of every optimizer step, flat."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(
            torch.cat([p.grad.flatten() for p in module.model.parameters() if p.requires_grad]).clone()
        )


def fit(model: Any, tokenizer: Any, rows: TokenizedDataset, **settings: Any) -> tuple[GradientLog, SFTTrainer]:
    log = GradientLog()
    options = {"max_epochs": 2, "precision": "64-true", "accelerator": "cpu", "enable_progress_bar": False}
    trainer = SFTTrainer(
        model, tokenizer, train_dataset=rows, learning_rate=1e-2, callbacks=[log], **(options | settings)
    )
    return log, trainer.train()


LAYOUTS: list[dict[str, Any]] = [
    {"layout": layout, "micro_batch_size": size}
    for layout, size in itertools.product(["padded", "packed"], [8, 4, 2, 1])
]
LAYOUTS += [
    {"layout": layout, "max_tokens_per_micro_batch": budget}
    for layout, budget in itertools.product(["padded", "packed"], [100, 250])
]


@pytest.mark.parametrize("count", [24, 21])  # 21: the last step of an epoch has 5 of 8 rows
def test_every_layout_gives_the_same_gradients(
    count: int, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows(count)
    logs = [fit(make_llama(), tokenizer, rows, batch_size=8, **layout)[0] for layout in LAYOUTS]
    assert len(logs[0].gradients) == 6
    for log in logs[1:]:
        for found, expected in zip(log.gradients, logs[0].gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_every_layout_gives_the_same_gradients_of_weighted_rows(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    plain = unequal_rows(21)
    weights = np.random.default_rng(0).uniform(0.1, 3, len(plain)).astype(np.float32)
    rows = replace(plain, row_weights=weights)
    logs = [fit(make_llama(), tokenizer, rows, batch_size=8, max_epochs=1, **layout)[0] for layout in LAYOUTS[::3]]
    for log in logs[1:]:
        for found, expected in zip(log.gradients, logs[0].gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    unweighted = fit(make_llama(), tokenizer, plain, batch_size=8, max_epochs=1)[0]
    assert not torch.allclose(unweighted.gradients[0], logs[0].gradients[0], rtol=1e-3)


@pytest.mark.parametrize("cut", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"max_tokens_per_micro_batch": 150}])
def test_packed_sequences_give_the_gradient_of_their_rows(
    cut: dict, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    """One optimizer step over all rows: however they are packed, it is the step of the rows."""
    rows = unequal_rows(24)
    packed, trainer = fit(make_llama(), tokenizer, rows, batch_size=12, packing_length=100, max_epochs=1, **cut)
    assert len(packed.gradients) == 1
    loose, _ = fit(make_llama(), tokenizer, rows, batch_size=24, layout="padded", max_epochs=1)
    torch.testing.assert_close(packed.gradients[0], loose.gradients[0], rtol=1e-9, atol=1e-12)
    assert trainer.trainer.callback_metrics["train/loss"].isfinite()


def test_a_budget_decides_the_accumulation_and_what_needs_it_known_is_refused(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    log, trainer = fit(make_llama(), tokenizer, unequal_rows(), batch_size=8, max_tokens_per_micro_batch=100)
    assert trainer.trainer.accumulate_grad_batches > 1
    assert trainer.trainer.global_step == len(log.gradients) == 6
    for settings, message in (
        ({"micro_batch_size": 2}, "only one of --max_tokens_per_micro_batch=100 and --micro_batch_size=2"),
        ({"accumulate_grad_batches": 2}, "only one of --max_tokens_per_micro_batch=100 and --accumulate_grad_batches"),
        ({"limit_train_batches": 4}, "use --max_steps"),
        ({"max_epochs": None, "max_time": "00:00:01:00", "schedule": "constant"}, "give --max_steps or --max_epochs"),
    ):
        with pytest.raises(UserError, match=message):
            fit(make_llama(), tokenizer, unequal_rows(), batch_size=8, max_tokens_per_micro_batch=100, **settings)
    with pytest.raises(UserError, match="--max_tokens_per_micro_batch=50 must hold the longest row, which has 90"):
        fit(make_llama(), tokenizer, unequal_rows(), batch_size=8, max_tokens_per_micro_batch=50)


def test_the_gradient_is_that_of_the_mean_over_all_targets_of_the_step(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    """An oracle that knows nothing of batches: one row at a time through the model's own forward."""
    rows = unequal_rows(8)
    log, _ = fit(make_llama(), tokenizer, rows, batch_size=8, micro_batch_size=2, max_epochs=1)
    model = make_llama().double()
    for sample in (rows[i] for i in range(len(rows))):
        ids = torch.tensor(sample.input_ids).long()
        nll = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        (nll[torch.tensor(sample.loss_mask)[1:]].sum() / rows.num_targets.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(log.gradients[0], expected, rtol=1e-9, atol=1e-12)


def test_logged_loss_is_that_of_the_step_not_of_the_last_micro_batch(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows(8)
    losses = {
        size: fit(make_llama(), tokenizer, rows, batch_size=8, micro_batch_size=size, max_epochs=1)[
            1
        ].trainer.callback_metrics
        for size in (8, 1)
    }
    for name in ("train/loss", "train/entropy", "train/token_accuracy", "train/grad_norm"):
        assert losses[8][name].item() == pytest.approx(losses[1][name].item(), rel=1e-6), name


@pytest.mark.parametrize("extra", [{}, {"micro_batch_size": 4}, {"micro_batch_size": 4, "layout": "padded"}])
def test_lightning_trainer_fit_gives_the_same_losses(
    extra: dict, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows()
    ours, _ = fit(make_llama(), tokenizer, rows, batch_size=8, **extra)
    log = GradientLog()
    module = SFTTrainer(make_llama(), tokenizer, train_dataset=rows, learning_rate=1e-2, batch_size=8, **extra)
    L.Trainer(
        max_epochs=2,
        precision="64-true",
        accelerator="cpu",
        accumulate_grad_batches=2 if extra else 1,
        callbacks=[log],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module)
    for found, expected in zip(log.gradients, ours.gradients, strict=True):
        assert torch.equal(found, expected)


def test_a_micro_batch_of_more_than_the_step_is_told(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    with pytest.warns(UserWarning, match="--micro_batch_size=9 is more than a device has of a step, 8"):
        fit(make_llama(), tokenizer, unequal_rows(8), batch_size=8, micro_batch_size=9, max_epochs=1)
