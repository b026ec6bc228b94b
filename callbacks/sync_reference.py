"""Lets the reference follow the policy: every so many steps it becomes the policy, or a mixture of the two.

Not here: how strongly the policy is held to it (``callbacks.KLSchedule``).
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from relax.errors import UserError
from relax.lightning_loop import step_completed
from relax.protocols import HasReference
from relax.shapes import different_shapes


class SyncReference(L.Callback):
    """Every so many optimizer steps: reference <- mix policy + (1 - mix) reference (TR-DPO, arXiv 2404.09656).

    The module has the policy as ``model`` and the reference, a copy of it, as ``reference``; their parameters are mixed
    in the policy's precision. The reference's travel in the checkpoints.

    Args:
        every_n_steps: optimizer steps from one time to the next.
        mix: the policy's share; 1 replaces the reference.

    Raises:
        UserError: a setting out of range, or the module has no such reference of its own: under LoRA it is the base.
    """

    def __init__(self, every_n_steps: int, mix: float = 1.0) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps of SyncReference must be above 0, got {every_n_steps}")
        if not 0 < mix <= 1:
            raise UserError(f"mix of SyncReference must be above 0 and at most 1, got {mix}")
        self.every_n_steps, self.mix = every_n_steps, mix
        self._reference: dict[str, nn.Parameter] = {}
        self._restored: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before a checkpoint is read."""
        self._restored = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse at once what could not be mixed; put back what a checkpoint brought."""
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError(
                "SyncReference needs whole weights on every device, which "
                f"{type(trainer.strategy).__name__} divides; use --strategy=ddp, or drop SyncReference"
            )
        self._reference = dict(_reference(pl_module).named_parameters())
        if different := different_shapes(dict(_policy(pl_module).named_parameters()), self._reference):
            name, ours, theirs = different[0]
            raise UserError(
                f"SyncReference needs a reference of the policy's shape, {name} is {theirs} in the reference and "
                f"{ours} in the policy; drop SyncReference"
            )
        with torch.no_grad():
            for name, weights in self._restored.items():
                self._reference[name].copy_(weights)
        self._restored = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Lightning's hook."""
        if step_completed(trainer) and trainer.global_step % self.every_n_steps == 0:
            self._mix(_policy(pl_module))

    @torch.no_grad()
    def _mix(self, policy: nn.Module) -> None:
        for name, parameter in policy.named_parameters():
            reference = self._reference[name]
            reference.copy_(reference.to(parameter.dtype).lerp(parameter, self.mix))

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return {name: parameter.detach() for name, parameter in self._reference.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook, between ``setup`` and ``on_fit_start``."""
        self._restored = state_dict


def _policy(pl_module: L.LightningModule) -> nn.Module:
    return pl_module.get_submodule("model")


def _reference(pl_module: L.LightningModule) -> nn.Module:
    if not isinstance(pl_module, HasReference) or pl_module.reference is None:
        raise UserError(
            f"SyncReference needs a reference model of its own, which {type(pl_module).__name__} has not: under LoRA "
            "it is the base, and with a KL coefficient of 0 there is none; drop SyncReference"
        )
    return pl_module.reference
