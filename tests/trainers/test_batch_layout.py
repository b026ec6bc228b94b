"""The gradient of an optimizer step does not depend on how its batch is cut: fp64, strongly unequal lengths."""

import itertools
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from relax.data.tokenized import TokenizedDataset
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


LAYOUTS = [
    {"layout": layout, "micro_batch_size": size}
    for layout, size in itertools.product(["padded", "packed"], [8, 4, 2, 1])
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


def test_group_by_length_loses_no_row_and_groups(unequal_rows: Callable) -> None:
    from relax.data.batches import epoch_steps

    lengths = unequal_rows(200).lengths
    grouped, plain = (epoch_steps(lengths, 8, 0, 0, group_by_length=group) for group in (True, False))
    assert sorted(i for step in grouped for i in step) == list(range(200))

    def spread(steps: list) -> float:
        return float(sum(lengths[step].max() - lengths[step].min() for step in steps))

    assert spread(grouped) < spread(plain) / 4
    assert [s.tolist() for s in plain] != [s.tolist() for s in epoch_steps(lengths, 8, 0, 1, False)]


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
