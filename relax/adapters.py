"""Several LoRA adapters on one frozen backbone: which of them computes, and one more beside the policy's.

Not here: how the first one is made or loaded (``relax.lora``), how it is exported and merged (``relax.export``).
PEFT's own switches also decide what is trained: ``set_adapter``, and the end of ``disable_adapter``, leave only the
active adapter with gradients. Those here change what computes, and nothing else.
"""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from torch import nn

from relax.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

DEFAULT = "default"
"""The policy's adapter, as PEFT calls the first one."""
CRITIC = "critic"
"""The adapter of PPO's value function."""
REWARD = "reward"
"""The adapter of a reward model."""


@contextmanager
def using_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Let the adapter ``name`` of a PEFT model compute, for a while, instead of the active one.

    What is trained stays as it is. With 32 layers it costs about a millisecond: each micro-batch may ask for it.
    """
    adapted = _peft_model(model)
    assert name in adapted.peft_config, f"there is no adapter called {name}"
    # Not set_adapter: it takes ten times as long, and switches gradients.
    before = [(layer, layer._active_adapter) for layer in _switches(adapted)]
    active, tuner = adapted.active_adapter, adapted.base_model
    try:
        for layer, _ in before:
            layer._active_adapter = _active_in(layer, name)
        adapted.active_adapter = tuner.active_adapter = name
        yield
    finally:
        for layer, names in before:
            layer._active_adapter = names
        adapted.active_adapter = tuner.active_adapter = active


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """A PEFT model as its base, for a while; afterwards everything is trained that was before."""
    adapted = _peft_model(model)
    trained = [(weight, weight.requires_grad) for weight in adapted.parameters()]
    try:
        with adapted.disable_adapter():
            yield
    finally:
        for weight, learns in trained:
            weight.requires_grad_(learns)


def add_adapter(model: nn.Module, name: str) -> None:
    """Give a PEFT model a fresh adapter with the settings of its first one, in place; the first one stays active.

    It is trained like the first one, and like that in float32 where the frozen weights are half precision. It is about
    the backbone: it has none of the first one's ``modules_to_save``, and on a language modeling head it learns nothing.

    Raises:
        UserError: there is an adapter of that name already.
    """
    adapted = _peft_model(model)
    settings = dataclasses.replace(
        _settings(adapted),
        inference_mode=False,
        modules_to_save=None,
        trainable_token_indices=None,
        bias="none",
        init_lora_weights=True,  # others, such as PiSSA, move the frozen weights, which the first one has done
        layer_replication=None,  # as well
    )
    insert_adapter(adapted, name, settings)
    head = adapted.get_base_model().get_output_embeddings()
    unused = set() if head is None else set(head.parameters())
    for weight in adapter_weights(adapted, name).values():
        weight.requires_grad_(weight not in unused)


def insert_adapter(model: nn.Module, name: str, settings: "LoraConfig") -> None:
    """Give a PEFT model one more adapter, in place: frozen, and not active. The others stay as they are.

    Raises:
        UserError: there is an adapter of that name already.
    """
    adapted = _peft_model(model)
    if name in adapted.peft_config:
        raise UserError(f'the model has an adapter called {name} already; drop it with model.delete_adapter("{name}")')
    trained = [(weight, weight.requires_grad) for weight in adapted.parameters()]
    adapted.add_adapter(name, settings)
    for weight in adapter_weights(adapted, name).values():
        weight.requires_grad_(False)
    for weight, learns in trained:
        weight.requires_grad_(learns)
    adapted.train(adapted.training)


def adapter_weights(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of the adapter ``name``, by their names in ``model``."""
    return {key: weight for key, weight in model.named_parameters() if is_of_adapter(key, name)}


def is_of_adapter(parameter: str, name: str) -> bool:
    """Whether a parameter, by its name in a PEFT model, belongs to the adapter ``name``."""
    kinds = r"lora_\w+|modules_to_save|trainable_tokens_\w+"
    return re.search(rf"(^|\.)({kinds})\.{re.escape(name)}(\.|$)", parameter) is not None


def same_adapter(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For ``torch.utils.checkpoint``: what is around a forward pass, and around its recomputation in backward.

    The recomputation uses the adapter of the forward pass, though another one may be active by then.
    """
    adapted = _peft_model(model)
    return nullcontext(), _again(adapted, adapted.active_adapter)


@contextmanager
def _again(model: "PeftModel", name: str) -> Iterator[None]:
    if model.active_adapter == name:
        yield
    else:
        with using_adapter(model, name):
            yield


def _peft_model(model: nn.Module) -> "PeftModel":
    from peft import PeftModel

    assert isinstance(model, PeftModel), "only a PEFT model has adapters"
    return model


def _settings(model: "PeftModel") -> "LoraConfig":
    from peft import LoraConfig

    settings = model.peft_config[DEFAULT]
    assert isinstance(settings, LoraConfig), "adapters of other kinds are refused where they are loaded"
    return settings


def _switches(model: nn.Module) -> Iterator["BaseTunerLayer | AuxiliaryTrainingWrapper"]:
    """The layers in which PEFT chooses among adapters; ten times as fast as a look at every module."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    def walk(module: nn.Module) -> Iterator["BaseTunerLayer | AuxiliaryTrainingWrapper"]:
        if isinstance(module, BaseTunerLayer):
            yield module
            yield from walk(module.get_submodule("base_layer"))
            return
        if isinstance(module, AuxiliaryTrainingWrapper):
            yield module
        for child in module.children():
            yield from walk(child)

    return walk(model)


def _active_in(layer: "BaseTunerLayer | AuxiliaryTrainingWrapper", name: str) -> str | list[str]:
    """What PEFT's ``set_adapter`` would put there.

    A LoRA layer may lack the adapter; a module that is replaced as a whole, or in some rows, may not.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(layer, AuxiliaryTrainingWrapper):
        return name if name in layer._adapters else []
    if isinstance(layer, TrainableTokensLayer):
        return [name] if name in layer.trainable_tokens_delta else []
    return [name]
