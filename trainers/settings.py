"""Which settings of a trainer cannot work, alone or together: told before anything is loaded."""

import copy
import inspect
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L

from relax import checks
from relax.data.batching.layout import Layout
from relax.errors import UserError
from relax.lightning_loop import build_lightning_trainer, quiet_lightning
from relax.optimizers import OPTIMIZERS, SCHEDULES

POSITIVE = (
    *("learning_rate", "batch_size", "micro_batch_size", "max_tokens_per_micro_batch", "packing_length"),
    *("val_every_n_steps", "decay_ratio"),
)
NOT_NEGATIVE = ("weight_decay", "warmup_steps", "data_workers")
SHARES = ("warmup_ratio", "min_lr_ratio", "decay_ratio")
# What cuts an optimizer step or a validation apart, whose denominators are those of the whole.
UNFIT = {
    "fast_dev_run": "cuts an optimizer step apart; use --max_steps=1",
    "overfit_batches": "repeats parts of an optimizer step; train on fewer rows instead",
    "limit_val_batches": "cuts the validation apart; use fewer rows, for example with --val_split",
    "val_check_interval": "counts micro-batches; use --val_every_n_steps",
    "reload_dataloaders_every_n_epochs": "has no use: the order of the data is a function of the epoch",
}


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
    checks.not_both(**{name: given[name] for name in ("max_tokens_per_micro_batch", "micro_batch_size")})
    checks.not_both(packing_length=given["packing_length"], group_by_length=given["group_by_length"])
    if given["packing_length"] is not None and given["layout"] == "padded":
        raise UserError(
            f"--packing_length={given['packing_length']} packs rows, --layout=padded does not; leave one out"
        )
    sequence, budget = given["packing_length"], given["max_tokens_per_micro_batch"]
    if sequence is not None and budget is not None and sequence > budget:
        raise UserError(
            f"--max_tokens_per_micro_batch={budget} must hold a packed sequence, got --packing_length={sequence}; "
            "raise the one or lower the other"
        )
    if isinstance(given["optimizer"], str):
        checks.one_of(OPTIMIZERS, optimizer=given["optimizer"])
    for name, effective in (
        ("min_lr_ratio", given["schedule"] != "constant"),
        ("decay_ratio", given["schedule"] == "wsd"),
    ):
        if given[name] and not effective:
            warnings.warn(f"--{name} has no effect with --schedule={given['schedule']}", stacklevel=5)


def check_lightning(lightning: Mapping[str, Any], own: Mapping[str, Any], kind: type) -> None:
    """What goes to ``lightning.Trainer``, and whether the batch size fits the devices.

    Raises:
        UserError: an unknown setting, devices that do not exist, a batch size that they do not divide.
    """
    known = inspect.signature(L.Trainer).parameters
    for name in lightning:
        if name not in known:
            raise UserError(f"unknown argument {name}{checks.nearest_setting(name, [*known, *keywords_of(kind)])}")
        if name in UNFIT and not _is_idle(lightning[name]):
            raise UserError(f"--{name}={lightning[name]} {UNFIT[name]}")
    with quiet_lightning():
        # A strategy of the user's own is set up by the lightning.Trainer that it is given to: here a copy.
        tried = {name: copy.copy(value) if name == "strategy" else value for name, value in lightning.items()}
        trainer = build_lightning_trainer(**with_an_end(tried), logger=False, enable_checkpointing=False)
    devices = trainer.num_nodes * trainer.num_devices
    accumulate = _accumulation(lightning, own, devices)
    started = int(os.environ.get("WORLD_SIZE", devices))
    if started != devices:
        raise UserError(
            f"{started} processes were started (WORLD_SIZE) for {devices} devices; give --devices=PROCESSES_PER_NODE "
            "and --num_nodes"
        )
    limit = lightning.get("limit_train_batches")
    cuts = limit % accumulate if isinstance(limit, int) else limit not in (None, 1.0)
    if cuts:
        raise UserError(
            f"--limit_train_batches must end with an optimizer step, got {limit} at {accumulate} micro-batches "
            "a step; --max_steps counts steps"
        )
    endless = trainer.max_steps == -1 and trainer.max_epochs in (None, -1)
    if endless and (own["schedule"] != "constant" or own["warmup_ratio"] is not None):
        raise UserError(
            f"--schedule={own['schedule']} and --warmup_ratio need an end that is known: give --max_steps or "
            "--max_epochs, or --schedule=constant"
        )


def check_attached(trainer: L.Trainer, accumulate: int, micro_batches: int | None) -> None:
    """What a ``lightning.Trainer`` of the user's own would cut apart.

    Args:
        trainer: the one that runs the module.
        accumulate: micro-batches of an optimizer step on each rank.
        micro_batches: of an epoch; None where that is not known.

    Raises:
        UserError: an optimizer step or a validation.
    """
    for name in ("fast_dev_run", "overfit_batches", "limit_val_batches"):
        value = vars(trainer)[name]
        if not _is_idle(value):
            raise UserError(f"{name}={value} of the lightning.Trainer {UNFIT[name].replace('--', '')}")
    for name in ("limit_train_batches", "val_check_interval"):
        value = vars(trainer)[name]
        count = int(value * micro_batches) if isinstance(value, float) and micro_batches is not None else value
        if isinstance(value, int | float) and not _is_idle(value) and count % accumulate:
            raise UserError(
                f"{name}={value} of the lightning.Trainer must end with an optimizer step, which has {accumulate} "
                "micro-batches; give a multiple of them"
            )


def _accumulation(lightning: Mapping[str, Any], own: Mapping[str, Any], devices: int) -> int:
    """Micro-batches of a step on each rank, where the count of sequences decides.

    Raises:
        UserError: the batch size does not fit them; or it is given where a budget of tokens decides.
    """
    given, budget = lightning.get("accumulate_grad_batches"), own["max_tokens_per_micro_batch"]
    if budget is None:
        size, share = own["micro_batch_size"], own["batch_size"] // devices
        if size is not None and size > share > 0:
            warnings.warn(f"--micro_batch_size={size} is more than a device has of a step, {share}", stacklevel=5)
        return Layout.of(own["batch_size"], devices, own["micro_batch_size"], given).accumulate
    checks.not_both(max_tokens_per_micro_batch=budget, accumulate_grad_batches=given)
    if isinstance(lightning.get("limit_train_batches"), int):
        raise UserError(
            "--limit_train_batches counts micro-batches, whose number follows from the data with "
            f"--max_tokens_per_micro_batch={budget}; use --max_steps"
        )
    return 1


def with_an_end(lightning: Mapping[str, Any], epochs: int = 1) -> dict[str, Any]:
    """So many epochs, where nothing says when to stop."""
    ends = {"max_steps", "max_epochs", "max_time"} & {name for name, value in lightning.items() if value is not None}
    return dict(lightning) if ends else {**lightning, "max_epochs": epochs}


def _is_idle(value: object) -> bool:
    """Whether a limit of Lightning's limits nothing: none, zero, off, or a share of 1.0 (a count of 1 does)."""
    return value is None or value is False or value == 0 or (isinstance(value, float) and value == 1.0)


def keywords_of(trainer: type) -> list[str]:
    """What a trainer and the classes that it comes from take by keyword only."""
    parameters = [p for cls in trainer.__mro__ for p in inspect.signature(cls).parameters.values()]
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def defaults_of(trainer: type) -> dict[str, Any]:
    """The keywords of a trainer's constructor that have a default, with it."""
    parameters = inspect.signature(trainer).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def is_plain(value: object) -> bool:
    """What YAML, a checkpoint read safely, and a logger's table can hold."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
