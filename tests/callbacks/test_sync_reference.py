"""The reference follows the policy as TR-DPO says, and travels in the checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from policy_run import Policy
from tiny_run import Tiny, fit, weights
from torch import Tensor, nn

from callbacks import Checkpoint, LinearKL, StepSeed, SyncReference
from relax.checkpoint_io import step_checkpoint
from relax.errors import UserError


class Watch(L.Callback):
    """The reference after every micro-batch."""

    def __init__(self) -> None:
        self.references: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Policy)
        self.references.append(reference(pl_module))


def reference(module: Policy) -> list[Tensor]:
    assert module.reference is not None
    return weights(module.reference)


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("mix", [1.0, 0.6])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_reference_is_the_mixture_of_the_equation(mix: float, accumulate: int) -> None:
    module, watch = Policy(), Watch()
    expected = reference(module)
    fit(SyncReference(every_n_steps=4, mix=mix), watch, module=module, accumulate_grad_batches=accumulate)
    assert len(module.policies) == 18 // accumulate
    for step, policy in enumerate(module.policies, start=1):
        if step % 4 == 0:
            expected = [mix * p + (1 - mix) * q for p, q in zip(policy, expected, strict=True)]
        for ours, theirs in zip(watch.references[step * accumulate - 1], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0 if mix == 1 else 1e-6, atol=0 if mix == 1 else 1e-7)
    assert not same(expected, reference(Policy()))


@pytest.mark.parametrize("step", [2, 4, 7, 12])
def test_a_resumed_run_has_the_reference_back_bit_for_bit(tmp_path: Path, step: int) -> None:
    """Before the first time, at one, between two, and at the end of an iteration; beside a schedule."""

    def run(*callbacks: L.Callback, **arguments: Any) -> Policy:
        module = Policy()
        fit(StepSeed(), LinearKL(0.1, 18), SyncReference(4, mix=0.6), *callbacks, module=module, **arguments)
        return module

    whole = run(Checkpoint(tmp_path, every_n_steps=1, keep=99))
    resumed = run(ckpt_path=step_checkpoint(tmp_path, step))
    assert resumed.losses == whole.losses[step:]
    assert same(weights(resumed), weights(whole))
    assert same(reference(resumed), reference(whole))


def test_a_second_run_does_not_get_the_first_ones_reference(tmp_path: Path) -> None:
    sync = SyncReference(every_n_steps=4)
    fit(Checkpoint(tmp_path), sync, module=Policy())
    resumed = Policy()
    fit(sync, module=resumed, ckpt_path=step_checkpoint(tmp_path, 18), max_epochs=3)
    assert not same(reference(resumed), reference(Policy()))
    fresh = Policy()
    fit(sync, module=fresh, max_steps=3)
    assert same(reference(fresh), reference(Policy()))


def test_a_reference_of_lower_precision_is_mixed_in_the_policys() -> None:
    module = Policy()
    assert module.reference is not None
    module.reference.to(torch.bfloat16)
    fit(SyncReference(every_n_steps=18), module=module)
    assert same(reference(module), [p.to(torch.bfloat16) for p in module.policies[-1]])


def test_what_could_not_be_mixed_is_refused_at_the_start() -> None:
    without, other = Policy(), Policy()
    without._reference = (None,)
    other._reference = (nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.3), nn.Linear(4, 1)),)
    refused: list[tuple[Any, str]] = [
        (
            without,
            "needs a reference model of its own, which Policy has not: under LoRA it is the base",
        ),
        (Tiny(), "which Tiny has not"),
        (other, r"0\.bias is \(4,\) in the reference and \(16,\) in the policy; drop SyncReference"),
    ]
    for module, message in refused:
        with pytest.raises(UserError, match=message):
            fit(SyncReference(1), module=module)


def test_sharded_weights_are_refused() -> None:
    run: Any = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(UserError, match="whole weights on every device, which ModelParallelStrategy divides"):
        SyncReference(1).on_fit_start(run, Policy())


@pytest.mark.parametrize(("every", "mix"), [(0, 1.0), (1, 0.0), (1, 1.5)])
def test_settings_out_of_range_are_refused(every: int, mix: float) -> None:
    with pytest.raises(UserError, match="of SyncReference must be above 0"):
        SyncReference(every, mix)
