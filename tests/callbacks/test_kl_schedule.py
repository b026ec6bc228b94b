"""The KL coefficient follows its schedule step by step, and a resumed run does not notice that it was killed."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from policy_run import COMPLETIONS, Policy, experience
from tiny_run import Tiny, data, fit, trainer, weights
from torch.utils.data import DataLoader

from callbacks import (
    AdaptiveKL,
    Checkpoint,
    ConstantKL,
    CosineKL,
    KLSchedule,
    LinearKL,
    MetricsFile,
    StepSeed,
)
from relax.checkpoint_io import step_checkpoint
from relax.errors import UserError

SCHEDULES: dict[str, Callable[[], KLSchedule]] = {
    "constant": ConstantKL,
    "linear": lambda: LinearKL(end=0.1, steps=12),
    "cosine": lambda: CosineKL(end=2.0, steps=15),
    "adaptive": lambda: AdaptiveKL(target=0.05, horizon=8),
}


def run(*callbacks: L.Callback, module: Policy | None = None, **arguments: Any) -> Policy:
    module = Policy() if module is None else module
    fit(StepSeed(), *callbacks, module=module, **arguments)
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantKL(), lambda step: 0.5),
        (LinearKL(end=0.1, steps=5), lambda step: 0.5 - 0.4 * step / 5 if step < 5 else 0.1),
        (LinearKL(end=0, steps=1), lambda step: 0.0 if step else 0.5),
        (CosineKL(end=1, steps=6), lambda step: 0.75 - 0.25 * math.cos(math.pi * step / 6) if step < 6 else 1.0),
    ],
)
def test_every_optimizer_step_has_its_coefficient(
    schedule: KLSchedule, expected: Callable[[int], float], accumulate: int
) -> None:
    """Also inside an accumulation window, where all micro-batches must have the same."""
    module = run(schedule, accumulate_grad_batches=accumulate)
    steps = [step for step, _ in module.coefs]
    assert steps == [step for step in range(18 // accumulate) for _ in range(accumulate)]
    assert [coef for _, coef in module.coefs] == pytest.approx([expected(step) for step in steps], rel=1e-12)


def test_a_ramp_arrives_exactly() -> None:
    for schedule in (LinearKL(end=0.1, steps=7), CosineKL(end=0.1, steps=7)):
        schedule.start = 0.7
        assert [schedule.value(step) for step in (0, 7, 8, 1000)] == [0.7, 0.1, 0.1, 0.1]


def test_adaptive_follows_the_equation_once_an_iteration() -> None:
    class Given(Policy):
        """Iteration i measured kls[i]."""

        kls = (0.5, 6.6, 100.0)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.experience = experience(self.kls[self.current_epoch])

    module = Given()
    run(AdaptiveKL(target=6, horizon=16), module=module)
    n_over_horizon = COMPLETIONS / 16
    first = 0.5 * (1 - 0.2 * n_over_horizon)
    second = first * (1 + 0.1 * n_over_horizon)
    expected = [0.5] * 6 + [first] * 6 + [second] * 6
    assert [coef for _, coef in module.coefs] == pytest.approx(expected, rel=1e-12)
    assert module.kl_coef == pytest.approx(second * (1 + 0.2 * n_over_horizon), rel=1e-12)


@pytest.mark.parametrize(("accumulate", "factors"), [(1, [1, 1.05, 1.05**2, 1.05**3]), (2, [1, 1, 1.05**2, 1.05**2])])
def test_adaptive_takes_each_batch_of_a_loader_for_an_iteration(accumulate: int, factors: list[float]) -> None:
    """All micro-batches of an optimizer step still have the same coefficient."""

    class Given(Policy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.experience = experience(100.0)

    module = Given()
    batches = DataLoader([data()] * 4, batch_size=None)  # type: ignore[arg-type]
    fitting = trainer(AdaptiveKL(target=6, horizon=16), max_epochs=1, accumulate_grad_batches=accumulate)
    fitting.fit(module, batches)
    assert [coef for _, coef in module.coefs] == pytest.approx([0.5 * factor for factor in factors], rel=1e-12)


@pytest.mark.parametrize("start", [0.3, 3.0])
def test_adaptive_brings_the_kl_to_its_target(start: float) -> None:
    """From a coefficient that lets the policy go too far, and from one that holds it too near."""

    class Measured(Policy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            if batch_idx == 0:
                kls.append(float(self.distance().detach()))

    means = []
    for callbacks in ([AdaptiveKL(target=2, horizon=8)], []):
        kls: list[float] = []
        run(*callbacks, module=Measured(start), max_epochs=40)
        means.append(sum(kls[-15:]) / 15)
    assert means[0] == pytest.approx(2, rel=0.15)
    assert means[1] > 2.8 if start == 0.3 else means[1] < 1.4


@pytest.mark.parametrize("step", [0, 4, 8, 12, 15])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, name: str, step: int) -> None:
    """In the middle of iterations of 6 steps, and at their ends."""

    class AtStart(L.Callback):
        def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(step_checkpoint(tmp_path, 0))

    # Lightning itself puts Checkpoint behind the schedule, wherever it stands.
    whole = run(Checkpoint(tmp_path, every_n_steps=1, keep=99), AtStart(), SCHEDULES[name]())
    assert name == "constant" or len({coef for _, coef in whole.coefs}) > 2
    resumed = run(SCHEDULES[name](), ckpt_path=step_checkpoint(tmp_path, step))
    assert resumed.coefs == whole.coefs[step:]
    assert resumed.losses == whole.losses[step:]
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed.kl_coef == whole.kl_coef


def test_the_start_is_remembered_and_another_one_is_not_ignored_silently(tmp_path: Path) -> None:
    run(Checkpoint(tmp_path), LinearKL(end=0, steps=36))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*KL coefficient")
        run(LinearKL(end=0, steps=36), ckpt_path=step_checkpoint(tmp_path, 18), max_epochs=4)
    with pytest.warns(UserWarning, match=r"began with a KL coefficient of 0.5 .* --kl_coef=0.9 has no effect"):
        other = run(
            LinearKL(end=0, steps=36),
            module=Policy(kl_coef=0.9),
            ckpt_path=step_checkpoint(tmp_path, 18),
            max_epochs=4,
        )
    assert other.coefs[0] == (18, 0.25)


def test_the_coefficient_of_a_step_is_in_its_row_of_the_metrics(tmp_path: Path) -> None:
    """Whichever callback comes first."""
    file = tmp_path / "metrics.jsonl"
    run(MetricsFile(file), LinearKL(end=0, steps=18))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    logged = {row["step"]: row["train/kl_coef"] for row in rows}
    assert logged == pytest.approx({step + 1: 0.5 * (1 - step / 18) for step in range(18)})


def test_what_has_no_effect_is_refused_at_the_start() -> None:
    refused: list[tuple[list[L.Callback], Any, str]] = [
        ([LinearKL(end=0, steps=3)], Tiny(), "LinearKL needs a module with kl_coef, Tiny has none"),
        ([ConstantKL()], Policy(kl_coef=0), "above 0 to start from, got 0, .* give --kl_coef"),
        ([LinearKL(0, 3), AdaptiveKL(1, 9)], Policy(), "only one schedule .* got LinearKL and AdaptiveKL"),
    ]
    for callbacks, module, message in refused:
        with pytest.raises(UserError, match=message):
            trainer(*callbacks).fit(module)


def test_adaptive_says_what_it_lacks() -> None:
    class NoReference(Policy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.experience = experience(None)

    class NoExperience(Policy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            pass

    class HasNone(Policy):
        def __init__(self) -> None:
            super().__init__()
            del self.experience

    lacking = [
        (NoReference(), 9.0, "left no log-probs of a reference; use LinearKL"),
        (NoExperience(), 9.0, "left no experience"),
        (HasNone(), 9.0, "needs a module with experience, HasNone has none"),
        (Policy(), 0.8, "above 0.8, a fifth of the 4 completions of an iteration, got 0.8"),
    ]
    for module, horizon, message in lacking:
        with pytest.raises(UserError, match=message):
            run(AdaptiveKL(target=1, horizon=horizon), module=module)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearKL(end=-1, steps=3), "end of LinearKL must be a number of at least 0, got -1"),
        (lambda: CosineKL(end=math.nan, steps=3), "end of CosineKL .* got nan"),
        (lambda: CosineKL(end=1, steps=0), "steps of CosineKL must be at least 1, got 0"),
        (lambda: AdaptiveKL(target=0, horizon=3), "target and horizon of AdaptiveKL must be above 0, got 0 and 3"),
        (lambda: AdaptiveKL(target=1, horizon=math.inf), "got 1 and inf"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], KLSchedule], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
