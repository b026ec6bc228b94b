"""SFTTrainer's objective: what the loss settings make of it, what is logged, and that validation stays comparable."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from relax.data.batching.batches import collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample, TokenizedDataset
from relax.errors import UserError
from trainers import SFTTrainer

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "precision": "64-true"}
OBJECTIVES: list[dict[str, Any]] = [
    {"loss": "dft"},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"loss": "dft", "z_loss": 0.01},
]


class GradientLog(L.Callback):
    """The gradient of every optimizer step, flat."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in module.model.parameters()]).clone())


def fit(model: Any, tokenizer: Any, rows: TokenizedDataset, **settings: Any) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients of the steps, and the figures at the end."""
    log = GradientLog()
    options: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "callbacks": [log], **QUIET}
    trainer = SFTTrainer(model, tokenizer, train_dataset=rows, **(options | settings)).train()
    return log.gradients, {name: float(value) for name, value in trainer.trainer.callback_metrics.items()}


def weighted(rows: TokenizedDataset, weights: list[float]) -> TokenizedDataset:
    pairs = zip((rows[i] for i in range(len(rows))), weights, strict=True)
    return TokenizedDataset.from_samples([Sample.of(row.input_ids, row.loss_mask, weight) for row, weight in pairs])


def literal_step(model: Any, rows: TokenizedDataset, token_loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient of sum over rows of weight x sum of token losses / sum of weights, one row at a time."""
    weights = [rows[i].weight for i in range(len(rows))]
    denominator = float(np.dot(weights, rows.num_targets))
    for i, weight in enumerate(weights):
        ids, mask = torch.tensor(rows[i].input_ids).long(), torch.tensor(rows[i].loss_mask)[1:]
        losses = token_loss(model(ids[None]).logits[0, :-1][mask], ids[1:][mask])
        (weight / denominator * losses.sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("size", [8, 2])
def test_row_weights_make_a_weighted_mean_over_tokens(
    layout: str, size: int, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = weighted(unequal_rows(8), [0.25, 1, 2, 0.5, 4, 1, 8, 0.125])  # exact in fp32
    (found,), _ = fit(make_llama(), tokenizer, rows, layout=layout, micro_batch_size=size, label_smoothing=0.1)
    expected = literal_step(
        make_llama().double(), rows, lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_row_of_weight_two_counts_as_two_rows(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    rows = unequal_rows(3)
    samples = [rows[i] for i in range(3)]
    twice, _ = fit(make_llama(), tokenizer, TokenizedDataset.from_samples([*samples, samples[1]]), loss="dft")
    heavy, figures = fit(make_llama(), tokenizer, weighted(rows, [1, 2, 1]), loss="dft")
    torch.testing.assert_close(heavy, twice, rtol=1e-9, atol=1e-12)
    assert figures["train/loss"] < figures["train/nll"]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradient_and_figures_do_not_depend_on_the_layout(
    objective: dict, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = weighted(
        unequal_rows(13), [1, 2, 0.5] * 4 + [3]
    )  # the second step has 5 rows, and micro-batches without any
    first, figures = fit(make_llama(), tokenizer, rows, layout="packed", **objective)
    again, same = fit(make_llama(), tokenizer, rows, layout="padded", micro_batch_size=1, **objective)
    torch.testing.assert_close(again, first, rtol=1e-9, atol=1e-12)
    for name in ("train/loss", "train/nll", "train/entropy", "train/token_accuracy"):
        assert same[name] == pytest.approx(figures[name], rel=1e-6), name


def test_what_is_logged_beside_the_objective(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    """The nll of the same pass: equal to the loss of a plain run before any update."""
    rows, settings = unequal_rows(8), {"max_epochs": 1}
    _, plain = fit(make_llama(), tokenizer, rows, **settings)
    assert "train/nll" not in plain
    for objective in OBJECTIVES:
        _, figures = fit(make_llama(), tokenizer, rows, **settings, **objective)
        assert figures["train/nll"] == pytest.approx(plain["train/loss"], rel=1e-6)
        assert figures["train/loss"] != pytest.approx(plain["train/loss"], rel=2e-5)


def test_validation_is_the_plain_nll_without_noise(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    settings: dict[str, Any] = {"val_dataset": unequal_rows(5, seed=1), "learning_rate": 1e-12}
    _, plain = fit(make_llama(), tokenizer, unequal_rows(8), **settings)
    _, other = fit(make_llama(), tokenizer, unequal_rows(8), **settings, loss="dft", z_loss=0.1, neftune_alpha=10.0)
    validation = {name for name in plain if name.startswith("val/")}
    assert validation == {"val/loss", "val/perplexity", "val/entropy", "val/token_accuracy"}
    assert validation == {name for name in other if name.startswith("val/")}
    for name in validation:
        assert other[name] == pytest.approx(plain[name], rel=1e-6), name


def test_neftune_trains_on_noise_that_seed_and_step_fix(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows(16)
    clean, _ = fit(make_llama(), tokenizer, rows)
    noisy, again, recomputed, other = (
        fit(make_llama(), tokenizer, rows, neftune_alpha=5.0, **settings)[0]
        for settings in ({}, {}, {"gradient_checkpointing": True}, {"seed": 1})
    )
    assert all(torch.equal(a, b) for a, b in zip(noisy, again, strict=True))
    torch.testing.assert_close(recomputed, noisy, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(noisy[0], clean[0], rtol=1e-2)
    assert not torch.allclose(noisy[0], other[0], rtol=1e-2)
    assert not torch.allclose(noisy[1] - noisy[0], torch.zeros_like(noisy[0]))


def test_no_hook_stays_on_the_model(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    model = make_llama()
    fit(model, tokenizer, unequal_rows(8), neftune_alpha=5.0)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("collate", [collate_packed, collate_padded])
def test_row_losses_are_the_plain_nll_of_each_row(
    collate: Callable, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows, model = unequal_rows(4), make_llama().double()
    trainer = SFTTrainer(model, tokenizer, train_dataset=rows, loss="dft", z_loss=0.1, **QUIET)
    found = trainer.row_losses(collate([rows[i] for i in range(1)], rows=[17]))
    ids, mask = torch.tensor(rows[0].input_ids).long(), torch.tensor(rows[0].loss_mask)[1:]
    expected = F.cross_entropy(model(ids[None]).logits[0, :-1][mask], ids[1:][mask], reduction="sum")
    assert found == {17: pytest.approx(expected.item(), rel=1e-6)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "dtf"}, "--loss must be one of dft, nll, got dtf; did you mean dft?"),
        ({"label_smoothing": 1.0}, "--label_smoothing must lie between 0 and 1, got 1.0"),
        ({"label_smoothing": -0.1}, "--label_smoothing must lie between 0 and 1, got -0.1"),
        ({"label_smoothing": 0.1, "loss": "dft"}, "--label_smoothing=0.1 goes with --loss=nll, got --loss=dft"),
        ({"z_loss": -1e-4}, "--z_loss must be above 0, got -0.0001"),
        ({"z_loss": float("nan")}, "--z_loss must be above 0, got nan"),
        ({"neftune_alpha": -5.0}, "--neftune_alpha must be above 0, got -5.0"),
        ({"router_aux_loss_coef": float("inf")}, "--router_aux_loss_coef must be above 0, got inf"),
        ({"router_aux_loss_coef": 0.1}, "--router_aux_loss_coef: LlamaForCausalLM has no routers"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: dict, message: str, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    with pytest.raises(UserError) as caught:
        SFTTrainer(make_llama(), tokenizer, train_dataset=unequal_rows(), **settings, **QUIET)
    assert message in str(caught.value)


def test_zero_switches_a_setting_off_and_settings_are_recorded(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows(8)
    plain, _ = fit(make_llama(), tokenizer, rows)
    off = {"z_loss": 0, "neftune_alpha": 0, "router_aux_loss_coef": 0, "label_smoothing": 0}
    found, figures = fit(make_llama(), tokenizer, rows, **off)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert "train/nll" not in figures
    trainer = SFTTrainer(make_llama(), tokenizer, train_dataset=rows, loss="dft", neftune_alpha=5.0, **QUIET)
    assert {name: trainer.hparams[name] for name in ("loss", "z_loss", "neftune_alpha", "router_aux_loss_coef")} == {
        "loss": "dft",
        "z_loss": 0.0,
        "neftune_alpha": 5.0,
        "router_aux_loss_coef": None,
    }
