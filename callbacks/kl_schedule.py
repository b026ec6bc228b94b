"""How strongly a policy is held to its reference as training goes on: schedules of a module's ``kl_coef``.

Not here: the penalty itself (the trainers'), and the reference (``callbacks.SyncReference``).
"""

import math
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from relax.errors import UserError
from relax.lightning_loop import brings_own_loader, step_completed
from relax.policy_gradient import adapted_kl_coef
from relax.protocols import HasExperience, HasKLCoef

if TYPE_CHECKING:
    from relax.experience import Experience


class KLSchedule(L.Callback, ABC):
    """Sets ``pl_module.kl_coef`` for every optimizer step and logs it as ``train/kl_coef``; subclasses say to what.

    It starts from the module's own ``kl_coef``, which travels in the checkpoints: a resumed run goes on from there.

    Attributes:
        start: the coefficient that the run began with.

    Raises:
        UserError: the module has no ``kl_coef``, or one of 0, or there is another schedule.
    """

    def __init__(self) -> None:
        self.start = 0.0

    @abstractmethod
    def value(self, step: int) -> float:
        """The coefficient when ``step`` optimizer steps are done."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what would have no effect; remember the start, before a checkpoint says what it was."""
        if stage != "fit":
            return
        schedules = [type(c).__name__ for c in trainer.callbacks if isinstance(c, KLSchedule)]  # type: ignore[attr-defined]
        if len(schedules) > 1:
            raise UserError(f"only one schedule of the KL coefficient can act, got {' and '.join(schedules)}")
        self.start = self._module(pl_module).kl_coef
        self.check_start(self.start)

    def check_start(self, kl_coef: float) -> None:
        """Refuse a coefficient that no schedule can start from.

        Raises:
            UserError: it is 0.
        """
        if not kl_coef > 0:
            raise UserError(
                f"{type(self).__name__} needs a KL coefficient above 0 to start from, got {kl_coef:g}, with which "
                "there is no reference to keep to; give --kl_coef, or drop the schedule"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook, after a checkpoint is read."""
        self._module(pl_module).kl_coef = self.value(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log what acts in this step: here, so that it does not matter which callback comes first."""
        pl_module.log("train/kl_coef", self._module(pl_module).kl_coef, on_step=True, on_epoch=False)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Set the next step's. Not at an epoch's end: Lightning skips that hook in a run resumed from there."""
        if step_completed(trainer):
            self._module(pl_module).kl_coef = self.value(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        if state_dict["start"] != self.start:
            warnings.warn(
                f"the run began with a KL coefficient of {state_dict['start']:g} and its schedule goes on from that; "
                f"--kl_coef={self.start:g} has no effect on it",
                stacklevel=2,
            )
        self.start = state_dict["start"]

    def _module(self, pl_module: L.LightningModule) -> HasKLCoef:
        if not isinstance(pl_module, HasKLCoef):
            raise UserError(f"{type(self).__name__} needs a module with kl_coef, {type(pl_module).__name__} has none")
        return pl_module


class ConstantKL(KLSchedule):
    """The coefficient stays what it is."""

    def value(self, step: int) -> float:
        """The start."""
        return self.start


class _Ramp(KLSchedule):
    """From the start to ``end`` in ``steps`` optimizer steps, then constant; subclasses say along which curve."""

    def __init__(self, end: float, steps: int) -> None:
        super().__init__()
        if not 0 <= end < math.inf:
            raise UserError(f"end of {type(self).__name__} must be a number of at least 0, got {end}")
        if steps < 1:
            raise UserError(f"steps of {type(self).__name__} must be at least 1, got {steps}")
        self.end, self.steps = end, steps

    @abstractmethod
    def share(self, done: float) -> float:
        """How much of the way to ``end`` is covered when a share ``done`` of the steps is; 0 at 0, 1 at 1."""

    def value(self, step: int) -> float:
        """On the ramp, or its end."""
        share = self.share(min(step / self.steps, 1.0))
        return (1 - share) * self.start + share * self.end


class LinearKL(_Ramp):
    """Along a line.

    Args:
        end: the coefficient after ``steps``; 0 lets go of the reference.
        steps: optimizer steps; the coefficient is constant afterwards.
    """

    def share(self, done: float) -> float:
        """The same."""
        return done


class CosineKL(_Ramp):
    """Along half a period of a cosine: slowly at first and at last.

    Args:
        end: the coefficient after ``steps``; 0 lets go of the reference.
        steps: optimizer steps; the coefficient is constant afterwards.
    """

    def share(self, done: float) -> float:
        """(1 - cos(pi x)) / 2."""
        return (1 - math.cos(math.pi * done)) / 2


class AdaptiveKL(KLSchedule):
    """Keeps the policy at about ``target`` nats from its reference: ``adapted_kl_coef`` (arXiv 1909.08593).

    Once an iteration, at its last batch (with a loader of the user's own, at the end of every batch, which is one), by
    ``pl_module.experience.kl()``: the mean over completions of the log ratio of policy and reference, summed over a
    completion's tokens, under the policy that sampled them.

    Args:
        target: nats of a completion, 6 in the paper; a longer completion has more of them.
        horizon: completions in which the coefficient follows by a factor of about e^0.2 at most, 10,000 in the paper;
            smaller is quicker.

    Raises:
        UserError: a setting out of range; during training: an iteration whose KL is not known.
    """

    def __init__(self, target: float, horizon: float) -> None:
        super().__init__()
        if not (0 < target < math.inf and 0 < horizon < math.inf):
            raise UserError(f"target and horizon of AdaptiveKL must be above 0, got {target} and {horizon}")
        self.target, self.horizon = target, horizon
        self._value = 0.0

    def value(self, step: int) -> float:
        """What the iterations before have led to."""
        return self._value

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning's hook."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            _with_experience(pl_module)
        self._value = self.start

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Adapt where an iteration ends."""
        if trainer.is_last_batch or brings_own_loader(trainer):
            self._adapt(_with_experience(pl_module).experience)
        super().on_train_batch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return super().state_dict() | {"value": self._value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        super().load_state_dict(state_dict)
        self._value = state_dict["value"]

    def _adapt(self, experience: "Experience | None") -> None:
        kl = None if experience is None else experience.kl()
        if experience is None or kl is None:
            missing = "experience" if experience is None else "log-probs of a reference"
            raise UserError(f"AdaptiveKL adapts to the KL of an iteration, but it left no {missing}; use LinearKL")
        completions = len(experience)
        if completions >= 5 * self.horizon:  # one update could take the whole coefficient away
            raise UserError(
                f"horizon of AdaptiveKL must be above {completions / 5:g}, a fifth of the {completions} completions of "
                f"an iteration, got {self.horizon:g}"
            )
        self._value = adapted_kl_coef(
            self._value, kl, target=self.target, horizon=self.horizon, num_samples=completions
        )


def _with_experience(pl_module: L.LightningModule) -> HasExperience:
    if not isinstance(pl_module, HasExperience):
        raise UserError(f"AdaptiveKL needs a module with experience, {type(pl_module).__name__} has none")
    return pl_module
