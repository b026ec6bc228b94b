"""LoRA through PEFT: add a new adapter to a model, continue one from a folder, checkpoint activations.

LoRA (arXiv 2106.09685): a frozen weight W becomes W + (alpha / r) B A, with A (r x inputs) random, B (outputs x r)
zero at first, so that training starts at the base model. Not here: further adapters beside it (``relax.adapters``),
what of it goes into a checkpoint (the trainer), how it is saved and merged (``relax.export``).
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from relax.adapters import DEFAULT, adapter_weights, same_adapter
from relax.errors import UserError
from relax.hub import local_folder, one_line_errors
from relax.shapes import different_shapes

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
TaskType: TypeAlias = Literal["CAUSAL_LM", "SEQ_CLS"]
"""What PEFT calls a language model, and a sequence classifier, whose head it trains in full beside the adapter."""
_TASKS = "SEQ_CLS adapters are reward models, CAUSAL_LM adapters write text"


@dataclass(frozen=True)
class LoRASettings:
    """What adapter to add.

    Attributes:
        r: Rank of the update.
        alpha: The update is scaled by alpha / r (alpha / sqrt(r) with ``use_rslora``). With a fixed alpha the best
            learning rate hardly depends on r, and is about ten times that of full fine-tuning (Schulman et al. 2025,
            "LoRA Without Regret").
        dropout: On the input of A, while training.
        target_modules: ``all-linear`` adapts every linear layer but the language modeling head: attention alone falls
            behind full fine-tuning however large r is (QLoRA, arXiv 2305.14314, figure 2; "LoRA Without Regret").
            Else names, each the end of a module's dotted path; or one regular expression for whole paths.
        modules_to_save: Names of modules to train in full and to keep with the adapter, such as ``lm_head``.
        use_rslora: Scale by alpha / sqrt(r) (arXiv 2312.03732); alpha / r learns slowly at a high rank.
        use_dora: Learn magnitude and direction apart (DoRA, arXiv 2402.09353); slower.
    """

    r: int
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = ALL_LINEAR
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"--lora_r must be at least 1, got {self.r}; drop it for full fine-tuning")
        if self.alpha <= 0:
            raise UserError(f"--lora_alpha must be positive, got {self.alpha}; 32 is a good start")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--lora_dropout must be at least 0 and below 1, got {self.dropout}")


def lora_settings(r: int | None, **options: Any) -> LoRASettings | None:
    """The settings, or None without a rank; ``options`` are fields of ``LoRASettings``, None or False where not given.

    Raises:
        UserError: An option is given without a rank, where it would be ignored and the whole model trained instead.
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if r:
        return LoRASettings(r, **given)
    if given:
        flags = ", ".join(f"--{name}" if name.startswith("use_") else f"--lora_{name}" for name in given)
        raise UserError(f"{flags}: no effect without --lora_r; add --lora_r=16 to train an adapter, or drop the flag")
    return None


def add_lora(model: "PreTrainedModel", settings: LoRASettings, *, task_type: TaskType = "CAUSAL_LM") -> "PeftModel":
    """Freeze ``model`` and add a new adapter to it, in place: the adapter and ``modules_to_save`` alone are trained.

    The adapter is float32 where the frozen weights are bfloat16 or float16; ``modules_to_save``, and the head of a
    classifier (``task_type="SEQ_CLS"``), keep the base's type.

    Raises:
        UserError: A name matches no module (says which exist), or PEFT cannot adapt a module that it names.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = _parse_targets(settings.target_modules)
    _check_names(model, "--lora_target_modules", [] if targets == ALL_LINEAR else targets)
    _check_names(model, "--lora_modules_to_save", settings.modules_to_save or [])
    if settings.modules_to_save and model.dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"--lora_modules_to_save trains in {str(model.dtype).removeprefix('torch.')}, which loses small updates to "
            "rounding; give --dtype=float32",
            stacklevel=2,
        )
    config = LoraConfig(
        task_type=task_type,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=settings.modules_to_save,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        # GPT-2 keeps its weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with _without_deprecations():
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"--lora_target_modules={settings.target_modules}: {error}".replace("\n", " ")) from None


def load_adapter(
    model: "PreTrainedModel", name_or_path: str, *, task_type: TaskType = "CAUSAL_LM", named: str | None = None
) -> "PeftModel":
    """Freeze ``model`` and continue a LoRA adapter that a run exported to a folder (or that lies on the hub), in place.

    Args:
        task_type: What the adapter must be for: language models, or classifiers, whose head comes with it.
        named: How messages call it; ``--adapter=...`` by default.

    Raises:
        UserError: There is no such adapter, it is not a LoRA adapter, it is for the other task, or it was trained on a
            model of another shape.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    named = named or f"--adapter={name_or_path}"
    settings, weights = read_adapter(name_or_path, task_type=task_type, named=named)
    with one_line_errors(named, name_or_path), _without_deprecations():
        adapted = get_peft_model(model, settings)
    check_adapter_fits(adapted, DEFAULT, weights, named)
    set_peft_model_state_dict(adapted, weights)
    return adapted


def read_adapter(name_or_path: str, *, task_type: TaskType, named: str) -> tuple["LoraConfig", dict[str, Tensor]]:
    """The settings of an exported LoRA adapter, and its weights on the CPU; arguments are those of ``load_adapter``.

    Raises:
        UserError: There is no such adapter, it is not a LoRA adapter, or it is for another task.
    """
    from peft import LoraConfig, PeftConfig
    from peft.utils import load_peft_weights

    folder = local_folder(name_or_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if folder is not None and not (folder / name).is_file():
            raise UserError(f"{named} has no {name}; give the folder of an exported adapter")
    source = name_or_path if folder is None else str(folder)
    with one_line_errors(named, name_or_path):
        settings = PeftConfig.from_pretrained(source)
        weights = load_peft_weights(source, device="cpu")
    if not isinstance(settings, LoraConfig):
        raise UserError(f"{named} is of type {settings.peft_type}; only LORA adapters can be continued")
    if settings.task_type not in (task_type, None):
        raise UserError(f"{named} has the task type {settings.task_type}, needed is {task_type}; {_TASKS}")
    settings.task_type, settings.inference_mode = task_type, False
    return settings, weights


def has_learned(model: nn.Module) -> bool:
    """Whether the LoRA adapter of a policy changes what its base computes; a fresh one does not."""
    return any("lora_B" in name and bool(weight.any()) for name, weight in adapter_weights(model, DEFAULT).items())


def enable_gradient_checkpointing(model: "PreTrainedModel | PeftModel") -> None:
    """Recompute activations in backward, a layer at a time: less memory, about a third more time, the same gradients.

    It works in training mode only; generation in evaluation mode keeps its KV cache. The model's configuration is left
    alone, so that an export is not slowed down for its users.

    Raises:
        UserError: The architecture does not support it.
    """
    from peft import PeftModel

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not base.supports_gradient_checkpointing:
        raise UserError(f"--gradient_checkpointing: {type(base).__name__} does not support it; drop the flag")
    with _without_deprecations():
        # Not reentrant: layers whose input needs no gradient, as under LoRA, still get theirs.
        options: dict[str, Any] = {"use_reentrant": False}
        if isinstance(model, PeftModel):
            # A partial, no closure: copies of the model shall ask the copy.
            options["context_fn"] = partial(same_adapter, model)
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Transformers 5.23 renames gradient checkpointing to activation checkpointing, which 5.17 does not know yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        yield


def _parse_targets(targets: str | list[str]) -> str | list[str]:
    """Names from a comma-separated string, which is what a command line gives; a regular expression stays as it is."""
    if isinstance(targets, str) and targets != ALL_LINEAR and re.fullmatch(r"[\w.,]+", targets):
        return [name for name in targets.split(",") if name]
    return targets


def _check_names(model: nn.Module, flag: str, names: str | list[str]) -> None:
    """Refuse names that match no module: PEFT ignores them as long as another one matches."""
    paths = [path for path, _ in model.named_modules()]
    if isinstance(names, str):
        unmatched = [] if any(_full_match(names, path, flag) for path in paths) else [names]
    else:
        unmatched = [name for name in names if not any(f".{path}".endswith(f".{name}") for path in paths)]
    if unmatched:
        raise UserError(f"{flag}: no module is called {', '.join(unmatched)}; there are {', '.join(_layers(model))}")


def _full_match(pattern: str, path: str, flag: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise UserError(f"{flag}={pattern} is neither names nor a regular expression: {error}") from None


def _layers(model: nn.Module) -> list[str]:
    """The short names of the layers that LoRA can adapt."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, Conv1D)
    return sorted({path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, kinds)})


def check_adapter_fits(adapted: "PeftModel", adapter: str, weights: Mapping[str, Tensor], named: str) -> None:
    """Refuse the weights of another base: PEFT leaves layers that a file lacks at their initial values.

    Args:
        adapted: With the adapter.
        adapter: Its name in there.
        weights: What is to be loaded into it.
        named: How messages call it.

    Raises:
        UserError: A weight is missing, superfluous or of another shape.
    """
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, adapter_name=adapter, save_embedding_layers=False)
    stored = {key: value for key, value in weights.items() if "lora_" in key or key in expected}
    if wrong := different_shapes(expected, stored):
        key, needed, found = wrong[0]
        raise UserError(
            f"{named} does not fit --model: {key} has the shape {found} in the adapter and {needed} in the "
            f"model ({len(wrong)} such weights); give the base it was trained on"
        )
