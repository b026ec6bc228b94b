"""What the scripts decide or refuse before anything is loaded: which task, which adapter, which folder."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relax import checks, report, run_folder
from relax.errors import UserError
from relax.launch.flags import DataFlags, KeepFlags, LoRAFlags, RunFlags
from relax.logging import build_logger
from relax.lora import LoRASettings, lora_settings
from relax.ranks import is_main_process
from relax.tasks import TASKS, Task

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# Flags that say how to read what another names, with their defaults.
NEEDED: dict[str, dict[str, Any]] = {
    "model": dict.fromkeys(("dtype", "attn_implementation", "revision", "chat_template"), None)
    | {"trust_remote_code": False},
    "dataset": {"dataset_name": None, "dataset_split": "train", "streaming": False},
    "val_dataset": {"val_dataset_split": "train"},
    "monitor": {"monitor_mode": "min"},
}
LORA_FLAGS = {
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def pick_task(task: str | None, *, model: str | None, dataset: str | None) -> Task | None:
    """The built-in task to train on, or None for the user's own data.

    Raises:
        UserError: the model and the data do not go together.
    """
    check_data_given(task, model=model, dataset=dataset)
    return None if dataset is not None else TASKS[task or next(iter(TASKS))]


def check_data_given(task: str | None, *, model: str | None, dataset: str | None) -> None:
    """Refuse a model without data, and data without one.

    Raises:
        UserError: the model and the data do not go together.
    """
    if dataset is None and model is not None and task is None:
        raise UserError(f"--model={model} needs data: add --dataset=FILE, or --task={next(iter(TASKS))} for a trial")
    if dataset is not None and model is None:
        raise UserError(f"--dataset={dataset} needs --model=NAME: the built-in model knows only the task's characters")
    checks.not_both(dataset=dataset, task=task)


def check_critic(critic: str | None, critic_model: str | None) -> None:
    """Refuse a model for a critic that is none of its own.

    Raises:
        UserError: as said.
    """
    if critic_model is not None and critic not in (None, "separate"):
        raise UserError(
            f"--critic_model={critic_model} is a model of its own, got --critic={critic}; use --critic=separate"
        )


def check_held_out(data: DataFlags) -> None:
    """Refuse flags on held-out rows that exclude one another.

    Raises:
        UserError: held-out rows from two places, or from the training rows.
    """
    checks.not_both(val_dataset=data.val_dataset, val_split=data.val_split)
    trained = (data.dataset, data.dataset_split)
    if data.val_dataset is not None and (data.val_dataset, data.val_dataset_split) == trained:
        raise UserError(
            f"--val_dataset={data.val_dataset} is the training data; name another split with "
            "--val_dataset_split, or hold rows out with --val_split"
        )
    share = data.val_split
    if share is not None and share >= 1 and share != int(share):
        raise UserError(f"--val_split must be a share below 1 or a whole number of rows, got {share}")


def check_validation(data: DataFlags, *, streaming: bool, monitor: str | None) -> None:
    """The same, and refuse what lacks validation data, or cannot have them.

    Raises:
        UserError: as ``check_held_out``; a monitored figure without any rows, or a stream that is to be split.
    """
    if streaming and data.val_split is not None:
        raise UserError(
            f"--val_split={data.val_split} needs all rows at hand: with --streaming give --val_dataset, or none"
        )
    check_held_out(data)
    if monitor is not None and data.val_dataset is None and data.val_split is None:
        raise UserError(f"--monitor={monitor} needs validation data: add --val_dataset or --val_split")


def check_keeping(flags: KeepFlags) -> None:
    """Refuse a period that cannot be.

    Raises:
        UserError: it is not above 0.
    """
    checks.positive(checkpoint_every_n_steps=flags.checkpoint_every_n_steps)


def graded(task: Task | None, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> Callable[[str], None] | None:
    """Says, ``before`` and ``after`` training, how many prompts of the task are answered right; None without a task."""
    return None if task is None else lambda when: report.say_accuracy(when, model, tokenizer, task)


def warn_without_effect(flags: Mapping[str, Any], *needed: str) -> None:
    """Tell of flags that say how to read something that is not read: one of ``needed``, by default any."""
    for name in needed or NEEDED:
        idle = [f"--{flag}" for flag, default in NEEDED[name].items() if flags.get(flag, default) != default]
        if flags[name] is None and idle:
            warnings.warn(f"{', '.join(idle)}: no effect without --{name}", stacklevel=2)


def open_run(
    kind: str, flags: RunFlags, settings: Mapping[str, Any], *, dry_run: bool
) -> tuple[Path | None, "Logger | Literal[False]"]:
    """The run's folder, which ``Trainer.train`` will claim, and its logger; neither for a dry run.

    Args:
        kind: ``sft``, ``grpo``, ...: of a new folder's name.
        flags: where it is to be.
        settings: of the trainer: resume and overwrite count.
        dry_run: nothing is to be written.

    Raises:
        UserError: the folder holds another run; a run is to be resumed that is not named; a package is missing.
    """
    checks.positive(keep_checkpoints=flags.keep_checkpoints)
    if dry_run:
        _check_dry_run(settings)
        return None, False
    resume, overwrite = settings.get("resume"), settings.get("overwrite", False)
    folder = _pick_folder(kind, flags.output_dir, resume=resume, overwrite=overwrite)
    return folder, build_logger(flags.logger, folder)


def pick_lora(flags: LoRAFlags, *, quantize: str | None) -> LoRASettings | None:
    """The adapter that the LoRA flags ask for, or None.

    Raises:
        UserError: a value out of range, or a flag that would have no effect.
    """
    options = {option: vars(flags)[flag] for option, flag in LORA_FLAGS.items()}
    checks.not_both(lora_r=flags.lora_r, adapter=flags.adapter)
    if flags.adapter is not None:
        given = [f"--{LORA_FLAGS[option]}" for option, value in options.items() if value]
        if given:
            raise UserError(f"{', '.join(given)}: no effect with --adapter, which brings its own; drop the flag")
        return None
    settings = lora_settings(flags.lora_r, **options)
    if quantize and settings is None:
        raise UserError(f"--quantize={quantize} freezes the weights; add --lora_r=16 to train an adapter")
    return settings


def _pick_folder(kind: str, output_dir: str | None, *, resume: str | None, overwrite: bool) -> Path:
    if output_dir is None and resume == "auto":
        raise UserError("--resume=auto needs the run's folder; add --output_dir=FOLDER")
    folder = Path(output_dir) if output_dir is not None else run_folder.fresh(kind)
    if resume is not None and resume != "auto":
        run_folder.resume_point(folder, resume)
    run_folder.check(folder, resume=resume is not None or not is_main_process(), overwrite=overwrite)
    return folder


def _check_dry_run(settings: Mapping[str, Any]) -> None:
    for name in ("resume", "overwrite"):
        if settings.get(name):
            raise UserError(f"--dry_run writes nothing and starts anew, got --{name}={settings[name]}; leave one out")
