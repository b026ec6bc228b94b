"""What a trainer asks of a Hugging Face causal language model: hidden states where they are needed, and the head.

Not a model of our own: the modules, masks and caches stay those of transformers, adapters stay those of PEFT.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relax.data.batches import Batch
from relax.errors import UserError

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


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Refuse a model whose own logits are not ``head(hidden state)``: its loss here would be another one's.

    Raises:
        UserError: the logits differ.
    """
    inner = base_model(model)
    ids = _some_ids(model, 4)
    theirs = inner(input_ids=ids, use_cache=False).logits[0]
    ours = language_head(model)(inner.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    # Half precision: the same operations in another order.
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
        raise UserError(
            f"{type(inner).__name__} changes its logits in a way ReLax does not know, so its loss would be wrong; "
            "supported are a bias, logit_scale, logits_scaling and final_logit_softcapping"
        )


@torch.no_grad()
def _keeps_documents_apart(model: nn.Module) -> bool:
    """Whether two documents in one row give each the hidden states that it has alone."""
    from relax.data.batches import collate_packed

    ids = _some_ids(model, 9)[0].tolist()
    batch = collate_packed([ids[:5], ids[5:]])
    device = base_model(model).device
    try:
        together = _last_hidden_state(model, batch.to(device))[0]
    except (TypeError, ValueError):  # the architecture takes no position ids or refuses the attention function
        return False
    inner = base_model(model).base_model
    for document, alike in ((ids[:5], together[:5]), (ids[5:], together[5:])):
        alone = inner(input_ids=torch.tensor([document], device=device), use_cache=False).last_hidden_state[0]
        if not torch.allclose(alone.float(), alike.float(), rtol=1e-2, atol=1e-2 * float(alone.abs().max())):
            return False
    return True


def _some_ids(model: nn.Module, count: int) -> Tensor:
    vocabulary = base_model(model).get_input_embeddings().weight.shape[0]
    return (torch.arange(count, device=base_model(model).device) * 7 + 1).remainder(vocabulary)[None]
