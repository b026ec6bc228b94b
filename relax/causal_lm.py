"""What a trainer asks of a Hugging Face causal language model: hidden states where they are needed, and the head.

Not a model of our own: the modules, masks and caches stay those of transformers, adapters stay those of PEFT.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relax.data.batches import Batch, collate_packed
from relax.data.tokenized import Sample
from relax.errors import UserError
from relax.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LanguageHead:
    """Hidden states [n, D] to logits [n, V], as the model's own forward does it (bias, LoRA, scaling, soft-capping)."""

    projection: nn.Module
    scale: float
    softcap: float | None

    def __call__(self, hidden: Tensor, /) -> Tensor:
        """Logits of ``hidden``."""
        logits: Tensor = self.projection(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def linear(self) -> nn.Linear | None:
        """The layer, where the head is that layer and nothing else."""
        plain = self.scale == 1.0 and self.softcap is None
        return self.projection if plain and type(self.projection) is nn.Linear else None

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights that the logits depend on."""
        return self.projection.parameters()


def base_model(model: nn.Module) -> "PreTrainedModel":
    """The transformers model inside a PEFT model, or the model itself; adapters stay active in it."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise UserError(f"model must be a transformers PreTrainedModel or a PeftModel, got {type(model).__name__}")
    return inner


def is_adapted(model: nn.Module) -> bool:
    """Whether ``model`` is a PEFT model."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def frozen_digest(model: nn.Module) -> str:
    """A digest of a few values of each frozen weight and of the adapter's settings: another base gives another one."""
    from peft import PeftModel

    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {parameter.detach().flatten()[:4].tolist()}".encode())
    if isinstance(model, PeftModel):
        settings = model.peft_config["default"]
        digest.update(f"{settings.r} {settings.lora_alpha} {settings.lora_dropout} {settings.use_rslora}".encode())
    return digest.hexdigest()


def language_head(model: nn.Module) -> LanguageHead:
    """The head of a causal language model.

    Raises:
        UserError: the model has no output embeddings.
    """
    inner = base_model(model)
    projection = inner.get_output_embeddings()
    if projection is None:
        raise UserError(f"{type(inner).__name__} has no language-model head; load it with AutoModelForCausalLM")
    config = inner.config.get_text_config().to_dict()
    scale = (config.get("logit_scale") or 1.0) / (config.get("logits_scaling") or 1.0)  # Cohere; Granite
    return LanguageHead(projection, scale, config.get("final_logit_softcapping"))  # Gemma 2 and later


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The states [K, D] that predict ``batch.targets``."""
    states = _last_hidden_state(model, batch)
    return states.flatten(0, 1).index_select(0, batch.positions)


def _last_hidden_state(model: nn.Module, batch: Batch) -> Tensor:
    """[B, T, D]. No attention mask: padding lies on the right, where a causal model never looks."""
    inner = base_model(model)
    options: dict[str, Any] = {}
    if batch.documents is not None:
        options = {"position_ids": batch.position_ids}
        if inner.config._attn_implementation == "documents":
            options |= {"documents": batch.documents, "attention_mask": batch.longest_mask}
    states: Tensor = inner.base_model(input_ids=batch.input_ids, use_cache=False, **options).last_hidden_state
    return states


def isolate_documents(model: nn.Module) -> bool:
    """Choose an attention that keeps packed documents apart; whether the model then does so.

    sdpa is replaced by ``relax.attention``; eager, flash and flex attention isolate documents by their position ids.
    """
    inner = base_model(model)
    if inner.config._attn_implementation == "sdpa":
        import relax.attention  # noqa: F401  registers it

        inner.set_attn_implementation("documents")
    isolated = _keeps_documents_apart(model)
    if not isolated:
        restore_attention(model)
    return isolated


def restore_attention(model: nn.Module) -> None:
    """Undo ``isolate_documents``."""
    inner = base_model(model)
    if inner.config._attn_implementation == "documents":
        inner.set_attn_implementation("sdpa")


def check_head(model: nn.Module) -> None:
    """Refuse a model whose own logits are not ``head(hidden state)``: its loss here would be another one's.

    Raises:
        UserError: the logits differ.
    """
    inner = base_model(model)
    if inner.config.to_dict().get("output_router_logits"):
        warnings.warn("the auxiliary loss of the model's router (output_router_logits) is not trained", stacklevel=2)
    ids = _some_ids(model, 4)
    with evaluating(model), torch.no_grad():
        theirs = inner(input_ids=ids, use_cache=False).logits[0]
        ours = language_head(model)(inner.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    if not _alike(ours, theirs):
        raise UserError(
            f"{type(inner).__name__} changes its logits in a way ReLax does not know, so its loss would be wrong; "
            "supported are a bias, logit_scale, logits_scaling and final_logit_softcapping"
        )


def _keeps_documents_apart(model: nn.Module) -> bool:
    """Whether two documents in one row give each the hidden states that it has alone."""
    ids = _some_ids(model, 9)[0]
    first, second = (Sample.of(part.tolist(), [False] * len(part)) for part in (ids[:5], ids[5:]))
    batch = collate_packed([first, second]).to(ids.device)
    with evaluating(model), torch.no_grad():
        alone = [base_model(model).base_model(input_ids=x[None], use_cache=False) for x in (ids[:5], ids[5:])]
        try:
            together = _last_hidden_state(model, batch)[0]
        except (TypeError, ValueError):  # the architecture takes no position ids, or refuses the attention function
            return False
    return _alike(together, torch.cat([output.last_hidden_state[0] for output in alone]))


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to the order of operations; a wrong scale or mask is orders of magnitude away."""
    tolerance = torch.finfo(theirs.dtype).eps ** 0.5
    distance, size = (ours - theirs).float().norm(dim=-1), theirs.float().norm(dim=-1)  # of each position
    return bool((distance <= tolerance * size).all())


def _some_ids(model: nn.Module, count: int) -> Tensor:
    inner = base_model(model)
    vocabulary = inner.get_input_embeddings().num_embeddings
    return (torch.arange(count, device=inner.device) * 7 + 1).remainder(vocabulary)[None]
