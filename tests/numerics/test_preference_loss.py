"""The Bradley-Terry loss, its gradient in a whole step and the calibration error, against literal restatements."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from reward_run import figures, fit, random_pairs, scorer

from relax.losses.preference import bradley_terry_loss, calibration_error, calibration_gaps, wins


def test_the_loss_of_a_pair_is_the_equation() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected, margins = rng.normal(0, 3, 50), rng.normal(0, 3, 50), rng.uniform(0, 2, 50)
    found = bradley_terry_loss(*(torch.tensor(x) for x in (chosen, rejected, margins)), centering_coef=0.03)
    expected = [
        -math.log(1 / (1 + math.exp(-(c - r - m)))) + 0.03 * (c + r) ** 2
        for c, r, m in zip(chosen, rejected, margins, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_far_scores_lose_no_gradient_and_no_number() -> None:
    scores = torch.tensor([-500.0, 500.0, 0.0], requires_grad=True)
    losses = bradley_terry_loss(scores, torch.zeros(3), torch.zeros(3))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([500.0, 0.0, math.log(2)])
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-1.0, 0.0, -0.5])


def literal_error(differences: list[float]) -> float:
    """Confidence of the favoured answer, bins of (1/2, 1], |accuracy - confidence| weighted by the share of pairs."""
    sure = [1 / (1 + math.exp(-d)) for d in differences]
    rows = [(max(p, 1 - p), 1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0) for p in sure]
    error = 0.0
    for low in (0.5 + 0.05 * i for i in range(10)):
        inside = [row for row in rows if low <= row[0] < low + 0.05 or (low > 0.94 and row[0] >= 1)]
        if inside:
            confidence, right = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            error += len(inside) / len(rows) * abs(right - confidence)
    return error


def test_the_calibration_error_is_that_of_the_definition_and_adds_up_over_parts() -> None:
    differences = [*np.random.default_rng(1).normal(0.4, 1.5, 400).tolist(), 0.0, 80.0, -80.0]
    values, weights = torch.tensor(differences).double(), torch.full((403,), 1 / 403).double()
    whole = calibration_gaps(values, weights)
    assert float(calibration_error(whole)) == pytest.approx(literal_error(differences), abs=1e-9)
    parts = sum(calibration_gaps(v, w) for v, w in zip(values.split(50), weights.split(50), strict=True))
    torch.testing.assert_close(parts, whole)
    assert wins(torch.tensor([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_a_model_that_knows_how_sure_it_may_be_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = torch.randn(200_000, generator=generator) * 2
    right = torch.rand(200_000, generator=generator) < sure.sigmoid()  # the answer that it prefers is the chosen one
    weights = torch.full((200_000,), 1 / 200_000)
    assert calibration_error(calibration_gaps(torch.where(right, sure, -sure), weights)) < 0.01
    assert calibration_error(calibration_gaps(torch.where(right, sure, -sure) * 4, weights)) > 0.1


def one_by_one(pairs: Any, coefficient: float) -> tuple[torch.Tensor, list[float]]:
    """The gradient of a step over all pairs and each loss, an answer at a time through the model's own forward."""
    model = scorer().double()
    model.config.pad_token_id = None  # a row alone: the output at its last token
    losses = []
    for pair in (pairs[i] for i in range(len(pairs))):
        chosen, rejected = (model(torch.tensor(ids).long()[None]).logits[0, 0] for ids in pair[:2])
        loss = -torch.log(torch.sigmoid(chosen - rejected - pair.margin)) + coefficient * (chosen + rejected) ** 2
        (loss / len(pairs)).backward()
        losses.append(loss.item())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), losses


@pytest.mark.parametrize(
    "cut",
    [
        {"layout": "packed"},
        {"layout": "padded"},
        {"layout": "packed", "micro_batch_size": 4},
        {"layout": "padded", "micro_batch_size": 4},
        {"layout": "padded", "micro_batch_size": 1},
        {"layout": "packed", "max_tokens_per_micro_batch": 130},
        {"layout": "padded", "max_tokens_per_micro_batch": 130},
    ],
    ids=str,
)
def test_the_gradient_of_a_step_is_that_of_the_mean_over_its_pairs_however_it_is_cut(cut: dict[str, Any]) -> None:
    pairs = random_pairs(20)
    expected, losses = one_by_one(pairs, 0.02)
    gradients, trainer = fit(pairs, batch_size=20, max_epochs=1, centering_coef=0.02, **cut)
    torch.testing.assert_close(gradients, [expected], rtol=1e-9, atol=1e-12)
    assert figures(trainer)["train/loss"] == pytest.approx(sum(losses) / 20, rel=1e-6)


@pytest.mark.parametrize("cut", [{"micro_batch_size": 1}, {"packing_length": 120}], ids=str)
def test_figures_are_those_of_the_step_and_of_the_held_out_set_not_of_micro_batches(cut: dict[str, Any]) -> None:
    pairs, held_out = random_pairs(20), random_pairs(7, seed=5)
    settings = {
        "batch_size": 20,
        "max_epochs": 1,
        "val_dataset": held_out,
        "learning_rate": 1e-9,
        "micro_batch_size": 20,
    }
    together, apart = (figures(fit(pairs, **settings | each)[1]) for each in ({"layout": "padded"}, cut))
    for name in ("loss", "nll", "accuracy", "reward_margin", "chosen_reward", "rejected_reward", "calibration_error"):
        assert apart[f"val/{name}"] == pytest.approx(together[f"val/{name}"], rel=1e-5), name
        assert apart[f"train/{name}"] == pytest.approx(together[f"train/{name}"], rel=1e-5), name
    model = scorer().double()
    model.config.pad_token_id = None
    with torch.no_grad():
        found = [[model(torch.tensor(ids).long()[None]).logits.item() for ids in held_out[i][:2]] for i in range(7)]
    differences = [chosen - rejected for chosen, rejected in found]
    assert together["val/loss"] == pytest.approx(sum(math.log1p(math.exp(-d)) for d in differences) / 7, rel=1e-4)
    assert together["val/accuracy"] == pytest.approx(sum(d > 0 for d in differences) / 7)
    assert together["val/calibration_error"] == pytest.approx(literal_error(differences), rel=1e-4)
