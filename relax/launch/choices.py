"""What the scripts share between their flags and their trainer: which model, which rows, which folder."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax import checks, run_folder
from relax.data.rows import Rows
from relax.data.sources.loading import load_rows, split_rows
from relax.data.sources.streams import RowStream, open_stream
from relax.errors import UserError
from relax.lora import LoRASettings, add_lora, load_adapter, lora_settings
from relax.models import check_vocabulary, load_model, load_tokenizer
from relax.ranks import is_main_process
from relax.seeding import seed_generators
from relax.tasks import TASKS, Task

if TYPE_CHECKING:
    import lightning as L
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
    if dataset is None and model is not None and task is None:
        raise UserError(f"--model={model} needs data: add --dataset=FILE, or --task={next(iter(TASKS))} for a trial")
    if dataset is not None and model is None:
        raise UserError(f"--dataset={dataset} needs --model=NAME: the built-in model knows only the task's characters")
    checks.not_both(dataset=dataset, task=task)
    return None if dataset is not None else TASKS[task or next(iter(TASKS))]


def check_validation(flags: Mapping[str, Any]) -> None:
    """Refuse flags on validation data that exclude or lack one another.

    Raises:
        UserError: held-out rows from two places, from the training rows, or a monitored figure without any.
    """
    checks.not_both(val_dataset=flags["val_dataset"], val_split=flags["val_split"])
    if flags["streaming"] and flags["val_split"] is not None:
        raise UserError(
            f"--val_split={flags['val_split']} needs all rows at hand: with --streaming give --val_dataset, or none"
        )
    held_out, trained = ((flags[k], flags[f"{k}_split"]) for k in ("val_dataset", "dataset"))
    if flags["val_dataset"] is not None and held_out == trained:
        raise UserError(
            f"--val_dataset={flags['val_dataset']} is the training data; name another split with "
            "--val_dataset_split, or hold rows out with --val_split"
        )
    share = flags["val_split"]
    if share is not None and share >= 1 and share != int(share):
        raise UserError(f"--val_split must be a share below 1 or a whole number of rows, got {share}")
    if flags["monitor"] is not None and flags["val_dataset"] is None and flags["val_split"] is None:
        raise UserError(f"--monitor={flags['monitor']} needs validation data: add --val_dataset or --val_split")


def warn_without_effect(flags: Mapping[str, Any]) -> None:
    """Tell of flags that say how to read something that is not read."""
    for needed, dependents in NEEDED.items():
        idle = [f"--{name}" for name, default in dependents.items() if flags[name] != default]
        if flags[needed] is None and idle:
            warnings.warn(f"{', '.join(idle)}: no effect without --{needed}", stacklevel=2)


def pick_folder(kind: str, output_dir: str | None, *, resume: str | None, overwrite: bool) -> Path:
    """The run's folder, which ``Trainer.train`` will claim.

    Raises:
        UserError: the folder holds another run, or a run is to be resumed that is not named.
    """
    if output_dir is None and resume == "auto":
        raise UserError("--resume=auto needs the run's folder; add --output_dir=FOLDER")
    folder = Path(output_dir) if output_dir is not None else run_folder.fresh(kind)
    if resume is not None and resume != "auto":
        run_folder.resume_point(folder, resume)
    run_folder.check(folder, resume=resume is not None or not is_main_process(), overwrite=overwrite)
    return folder


def pick_lora(flags: Mapping[str, Any]) -> LoRASettings | None:
    """The adapter that the LoRA flags ask for, or None.

    Raises:
        UserError: a value out of range, or a flag that would have no effect.
    """
    options = {option: flags[flag] for option, flag in LORA_FLAGS.items()}
    checks.not_both(lora_r=flags["lora_r"], adapter=flags["adapter"])
    if flags["adapter"] is not None:
        given = [f"--{LORA_FLAGS[option]}" for option, value in options.items() if value]
        if given:
            raise UserError(f"{', '.join(given)}: no effect with --adapter, which brings its own; drop the flag")
        return None
    settings = lora_settings(flags["lora_r"], **options)
    if flags["quantize"] and settings is None:
        raise UserError(f"--quantize={flags['quantize']} freezes the weights; add --lora_r=16 to train an adapter")
    return settings


def load_policy(
    flags: Mapping[str, Any], lora: LoRASettings | None, task: Task | None, seed: int
) -> tuple["nn.Module", "PreTrainedTokenizerBase"]:
    """Model and tokenizer, with the adapter to train if one is asked for.

    Args:
        flags: model, dtype, attn_implementation, revision, chat_template, trust_remote_code, quantize, adapter.
        lora: a new adapter to add.
        task: whose model is used when ``flags`` names none.
        seed: of fresh weights.

    Raises:
        UserError: something cannot be found, read or used.
    """
    seed_generators(seed, "init")
    name = flags["model"]
    if name is None:
        assert task is not None, "pick_task refuses data without a model"
        model, tokenizer = task.build_model(seed), task.build_tokenizer()
    else:
        source = {flag: flags[flag] for flag in ("revision", "trust_remote_code")}
        tokenizer = load_tokenizer(name, chat_template=flags["chat_template"], **source)
        weights = {flag: flags[flag] for flag in ("dtype", "attn_implementation", "quantize")}
        model = load_model(name, **weights, **source)
    check_vocabulary(model, tokenizer)
    if lora is not None:
        return add_lora(model, lora), tokenizer
    if flags["adapter"] is not None:
        return load_adapter(model, flags["adapter"]), tokenizer
    return model, tokenizer


def check_dry_run(settings: Mapping[str, Any]) -> None:
    """Refuse what a run that writes nothing cannot do.

    Raises:
        UserError: it is to continue or to replace another run.
    """
    for name in ("resume", "overwrite"):
        if settings.get(name):
            raise UserError(f"--dry_run writes nothing and starts anew, got --{name}={settings[name]}; leave one out")


def load_data(flags: Mapping[str, Any], task: Task | None, seed: int) -> tuple[Rows | RowStream, Rows | None]:
    """Training rows (a stream, if asked for) and held-out rows (or None).

    Args:
        flags: dataset, dataset_name, dataset_split, streaming, val_dataset, val_dataset_split, val_split.
        task: whose rows are used when ``flags`` names none.
        seed: of the split.

    Raises:
        UserError: something cannot be found, read or split.
    """
    source, split, name = flags["dataset"], flags["dataset_split"], flags["dataset_name"]
    held_out = None
    if flags["val_dataset"] is not None:
        same = flags["val_dataset"] == source
        held_out = load_rows(flags["val_dataset"], flags["val_dataset_split"], name=name if same else None)
    if task is None and flags["streaming"]:
        return open_stream(source, split, name=name), held_out
    rows: Rows = load_rows(source, split, name=name) if task is None else task.train_rows()
    if flags["val_split"] is not None:
        share = flags["val_split"]
        return split_rows(rows, share if share < 1 else int(share), seed)
    return rows, held_out


def without_doubles(defaults: list["L.Callback"], own: list["L.Callback"]) -> list["L.Callback"]:
    """Both, but no default where the user brings another of its kind: Lightning allows one progress bar."""
    from lightning.pytorch.callbacks import ProgressBar

    brings_bar = any(isinstance(callback, ProgressBar) for callback in own)
    kinds = tuple(type(callback) for callback in own)
    kept = [c for c in defaults if not isinstance(c, kinds) and not (brings_bar and isinstance(c, ProgressBar))]
    return [*own, *kept]
