"""Which settings of a trainer cannot work, alone or together: told before anything is loaded."""

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L

from relax import checks
from relax.data.batches import Layout
from relax.errors import UserError
from relax.lightning_loop import build_lightning_trainer, quiet_lightning
from relax.optimizers import OPTIMIZERS, SCHEDULES

POSITIVE = ("learning_rate", "batch_size", "micro_batch_size", "val_every_n_steps", "decay_ratio")
NOT_NEGATIVE = ("weight_decay", "warmup_steps", "data_workers")
SHARES = ("warmup_ratio", "min_lr_ratio", "decay_ratio")


def check_own(given: Mapping[str, Any]) -> None:
    """The trainer's own settings.

    Raises:
        UserError: a value out of range, or two settings that exclude each other.
    """
    checks.positive(**{name: given[name] for name in POSITIVE})
    checks.between(0, math.inf, **{name: given[name] for name in NOT_NEGATIVE})
    checks.between(0, 1, **{name: given[name] for name in SHARES})
    checks.between(0, 1 - 1e-9, betas=max(given["betas"]))
    checks.one_of(SCHEDULES, schedule=given["schedule"])
    checks.one_of(("auto", "packed", "padded"), layout=given["layout"])
    checks.not_both(warmup_steps=given["warmup_steps"], warmup_ratio=given["warmup_ratio"])
    checks.not_both(resume=given["resume"], overwrite=given["overwrite"])
    if isinstance(given["optimizer"], str):
        checks.one_of(OPTIMIZERS, optimizer=given["optimizer"])
    if given["schedule"] == "constant" and given["min_lr_ratio"]:
        warnings.warn("--min_lr_ratio has no effect with --schedule=constant", stacklevel=5)


def check_lightning(lightning: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """What goes to ``lightning.Trainer``, and whether the batch size fits the devices.

    Raises:
        UserError: an unknown setting, devices that do not exist, a batch size that they do not divide.
    """
    known = inspect.signature(L.Trainer).parameters
    for name in lightning:
        if name not in known:
            raise UserError(f"unknown argument {name}{checks.nearest(name, [*known, *own])}")
    with quiet_lightning():
        trainer = build_lightning_trainer(**lightning, logger=False, enable_checkpointing=False)
    devices, accumulate = trainer.num_nodes * trainer.num_devices, lightning.get("accumulate_grad_batches")
    Layout.of(own["batch_size"], devices, own["micro_batch_size"], accumulate)
