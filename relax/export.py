"""Save a trained model as a folder that Hugging Face users load: a PEFT adapter, a merged model, a whole model.

Not a checkpoint: nothing here resumes a run. A folder appears complete or not at all.
"""

import copy
import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import Tensor, nn

from relax.adapters import DEFAULT, using_adapter
from relax.errors import UserError, storage_error
from relax.models import pad_id, stop_ids

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# What the owner of the disk has to mend; any other error is a bug and keeps its traceback.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_EXPORT_SUBFOLDERS = {"merged", "additional_chat_templates"}


def export_model(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    *,
    merge_adapter: bool = False,
    card: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``model`` and ``tokenizer`` to ``folder``, in place of an earlier export; the model stays as it is.

    An adapter is written as ``PeftModel.from_pretrained(base, folder)`` reads it, a whole model as ``from_pretrained``
    does: safetensors in the weights' own type, the tokenizer with its chat template, a generation configuration that
    stops where the tokenizer ends a text or an assistant's turn. In a run of several processes call it in one of them.

    Args:
        merge_adapter: Write the merged model (``merged_model``) to ``folder/merged`` as well.
        card: Text of README.md, for example from ``model_card``.
        state_dict: Weights to write instead of the model's own, under the names of ``model.state_dict()``: those
            gathered from a sharded model, or averaged ones.

    Raises:
        UserError: See ``check_export``; or the disk is full, read-only or closed to this user.
    """
    from peft import PeftModel

    target = Path(folder).expanduser().resolve()
    with _disk_errors(target):
        check_export(model, target, merge_adapter=merge_adapter)
        with _replacing(target) as temporary:
            if isinstance(model, PeftModel):
                _save_adapter(model, tokenizer, temporary, state_dict)
            else:
                _save_whole(model, tokenizer, temporary, state_dict)
            if merge_adapter and isinstance(model, PeftModel):
                _save_whole(merged_model(model, state_dict), tokenizer, temporary / "merged", None)
            if card is not None:
                (temporary / "README.md").write_text(card, encoding="utf-8")
            _open_to_readers(temporary)


def check_export(model: "PreTrainedModel | PeftModel", folder: str | Path, *, merge_adapter: bool = False) -> None:
    """Refuse, before a long run, what ``export_model`` would refuse after it.

    Raises:
        UserError: The folder holds anything but an earlier export, or the very model that was loaded; or the adapter of
            a 4-bit model is to be merged, which would round the result to 4 bits.
    """
    from peft import PeftModel

    adapted = isinstance(model, PeftModel)
    if merge_adapter and not adapted:
        warnings.warn("--merge_adapter has no effect without an adapter (--lora_r or --adapter)", stacklevel=2)
    if merge_adapter and adapted and not all(weight.is_floating_point() for weight in model.parameters()):
        raise UserError(
            "--merge_adapter cannot merge into quantized weights without rounding to 4 bits; drop it, and merge the "
            "exported adapter into the base model loaded without --quantize"
        )
    target = Path(folder).expanduser().resolve()
    base = model.get_base_model() if adapted else model
    if base.name_or_path and Path(base.name_or_path).resolve() == target:
        raise UserError(f"the export would replace the model that was loaded, {folder}; choose another output folder")
    if target.exists():
        _check_replaceable(target)


def merged_model(model: "PeftModel", state_dict: Mapping[str, Tensor] | None = None) -> "PreTrainedModel":
    """The base with its first adapter's update added to its weights: a plain model, on the CPU and in evaluation mode.

    ``model`` itself is not touched. Merging and unmerging in place is not exact (in bfloat16 it changes weights for
    good), so that the sum goes into new tensors: one host copy of the adapted layers for a model on the CPU, of the
    whole model for one on a GPU, and nothing more on the device. The sum is rounded to the type of the base's weights.

    Args:
        state_dict: Weights to merge instead of the model's own, under the names of ``model.state_dict()``.
    """
    values = dict(state_dict or {})
    weights = {id(weight): values.get(name, weight).detach().cpu() for name, weight in model.named_parameters()}
    # A copy of the modules that still shares every weight, ...
    shell = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for module in shell.modules():
        # ... then a parameter of its own for each module: a merged head must not change the embedding it is tied to.
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weights[id(weight)], requires_grad=False))
    with using_adapter(shell.cpu().eval(), DEFAULT):
        # "safe" merging assigns a new tensor; the plain one adds to the storage, which is the live model's.
        return shell.merge_and_unload(safe_merge=True)


def model_card(
    *,
    figures: Mapping[str, float],
    settings: Mapping[str, object],
    trainer: str,
    base_model: str | None = None,
    adapter: bool = False,
    pipeline_tag: str = "text-generation",
) -> str:
    """README.md of an export: what it is, how to load it, the run's figures, its settings.

    Args:
        figures: Final metrics of the run by name.
        settings: Flags of the run by name.
        trainer: Class that trained it.
        base_model: What was fine-tuned, hub name or folder; of a folder only the last part is published.
        adapter: Whether it is a LoRA adapter.
        pipeline_tag: What it is for, in the hub's words.
    """
    import yaml

    base = Path(base_model).name if base_model and Path(base_model).expanduser().is_dir() else base_model
    header: dict[str, object] = {"library_name": "peft" if adapter else "transformers"}
    header |= {"base_model": base} if base else {}
    header |= {"pipeline_tag": pipeline_tag, "tags": ["relax", trainer, *(["lora"] if adapter else [])]}
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {base or 'A model'}, fine-tuned",
        f"{'A LoRA adapter' if adapter else 'A model'} trained by `{trainer}` of ReLax.",
        f"## How to load it\n\n```python\n{_loading_example(base, adapter, pipeline_tag)}\n```",
        f"## Figures\n\n{_table({name: f'{value:.6g}' for name, value in figures.items()})}",
        f"## Settings\n\n{_table(_publishable(settings))}",
    ]
    return "\n\n".join(parts) + "\n"


def _loading_example(base: str | None, adapter: bool, pipeline_tag: str) -> str:
    scores = pipeline_tag == "text-classification"
    kind = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    plain = [f"from transformers import {kind}, AutoTokenizer", "", 'folder = "path/to/this/folder"']
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(folder)"
    if not adapter:
        return "\n".join([*plain, f"model = {kind}.from_pretrained(folder)", tokenizer])
    outputs = ", num_labels=1" if scores else ""
    lines = ["from peft import PeftModel", *plain]
    lines.append(f'base = {kind}.from_pretrained("{base or "path/to/the/base/model"}"{outputs})')
    lines += ["model = PeftModel.from_pretrained(base, folder)", tokenizer]
    return "\n".join([*lines, *(["model.config.pad_token_id = tokenizer.pad_token_id"] if scores else [])])


def _publishable(settings: Mapping[str, object]) -> dict[str, object]:
    """Simple settings, without where things lay on this machine: paths keep their last part."""
    plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    paths = {name: Path(value).expanduser() for name, value in plain.items() if isinstance(value, str) and value}
    local = {name: path.name for name, path in paths.items() if path.is_absolute() or path.exists()}
    return {**plain, **local}


def _table(rows: Mapping[str, object]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows.items()]
    return "\n".join(["| name | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)])


def _save_adapter(
    model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", folder: Path, state_dict: Mapping[str, Tensor] | None
) -> None:
    weights = None if state_dict is None else dict(state_dict)
    # Left to decide whether to save embeddings, PEFT asks the hub how many the base has; ReLax never changes that.
    # Further adapters on the same backbone, such as a critic's, are nobody else's business.
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False, selected_adapters=[DEFAULT])
    tokenizer.save_pretrained(str(folder))


def _save_whole(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    state_dict: Mapping[str, Tensor] | None,
) -> None:
    weights = None if state_dict is None else dict(state_dict)  # transformers empties the dict that it is given
    with _generation_for_users(model, tokenizer):
        model.save_pretrained(str(folder), state_dict=weights)
    tokenizer.save_pretrained(str(folder))


@contextmanager
def _generation_for_users(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """For the time of a save, a generation configuration that stops where the tokenizer says."""
    if not model.can_generate():  # it only scores
        yield
        return
    own = model.generation_config
    model.generation_config = _generation_config(own, tokenizer)
    try:
        yield
    finally:
        model.generation_config = own


def _generation_config(own: "GenerationConfig", tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    from transformers import GenerationConfig

    known = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    # The base's own stops, unless they are an architecture's defaults, which name ordinary tokens of this tokenizer.
    stops = [token for token in known if token in tokenizer.added_tokens_decoder]
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(dict.fromkeys(stops + stop_ids(tokenizer))),
        "pad_token_id": pad_id(tokenizer),
    }
    config = copy.deepcopy(own)
    config.update(**ids)
    try:
        config.validate(strict=True)
    except ValueError as error:  # as published with some models: transformers loads these, but refuses to save them
        warnings.warn(f"of the base's generation settings only token ids are kept: {error}", stacklevel=2)
        return GenerationConfig(**ids)
    return config


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not an export of ours: replacing removes everything in the folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another output folder")
    entries = list(folder.iterdir())
    names = {entry.name for entry in entries}
    foreign = {entry.name for entry in entries if entry.is_dir()} - _EXPORT_SUBFOLDERS
    if names and (foreign or not names & {"config.json", "adapter_config.json"}):
        example = sorted(foreign or names)[0]
        raise UserError(f"{folder} holds more than an exported model ({example}); choose another output folder")


def _open_to_readers(folder: Path) -> None:
    """Give every file the mode that the process's umask asks for: safetensors makes its own unreadable to others."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes ``folder`` if all goes well, and is removed otherwise."""
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            # What stands under "old" is superseded: it is only there without "folder" between these two renames.
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Say in one line that the disk is full, read-only or closed; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise storage_error(folder, error) from None
    except SafetensorError as error:
        # It names the system's error by text alone: "... (os error 28)".
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise storage_error(folder, OSError(int(code[1]), os.strerror(int(code[1])))) from None
