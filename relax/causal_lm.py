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

from relax import isolation
from relax.adapters import DEFAULT, is_of_adapter
from relax.data.batching.batches import Batch
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
    """A digest of a few values of each frozen weight and of the adapter's settings: another base gives another one.

    Further adapters of the model, such as a critic's, have no part in it.
    """
    from peft import PeftModel

    others = [name for name in model.peft_config if name != DEFAULT] if isinstance(model, PeftModel) else []
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not any(is_of_adapter(name, other) for other in others):
            digest.update(f"{name} {parameter.detach().flatten()[:4].tolist()}".encode())
    if isinstance(model, PeftModel):
        settings = model.peft_config[DEFAULT]
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


@dataclass(frozen=True)
class Forward:
    """What one pass over a batch of N tokens, padding included, gives."""

    hidden: Tensor
    """[K, D], the states that predict ``batch.targets``."""
    router_logits: tuple[Tensor, ...] | None
    """[N, experts] of each mixture-of-experts layer, tokens as in ``batch.input_ids.flatten()``; None: not asked."""


def forward(model: nn.Module, batch: Batch, *, router_logits: bool = False) -> Forward:
    """The states of ``batch``, with the routers' logits where asked for.

    Raises:
        UserError: router logits are asked of a model that has none.
    """
    output = _base_output(model, batch, output_router_logits=True) if router_logits else _base_output(model, batch)
    hidden = output.last_hidden_state.flatten(0, 1).index_select(0, batch.positions)
    if not router_logits:
        return Forward(hidden, None)
    logits = output.get("router_logits")
    if not logits:
        raise UserError(f"{type(base_model(model)).__name__} hands out no router logits; use --router_aux_loss_coef=0")
    return Forward(hidden, tuple(layer.flatten(0, -2) for layer in logits))


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The states [K, D] that predict ``batch.targets``."""
    return forward(model, batch).hidden


def _base_output(model: nn.Module, batch: Batch, **options: Any) -> Any:
    """Of the model without its head. No attention mask: padding lies on the right, where a causal model never looks."""
    inner = base_model(model)
    if batch.documents is not None:
        options["position_ids"] = batch.position_ids
        if inner.config._attn_implementation == "documents":
            options |= {"documents": batch.documents, "attention_mask": batch.longest_mask}
        elif "flash" in inner.config._attn_implementation:  # it would look for them in each layer, and wait for the GPU
            options |= batch.documents.flash_arguments(batch.input_ids.device)
    return body(inner)(input_ids=batch.input_ids, use_cache=False, **options)


def body(inner: "PreTrainedModel") -> "PreTrainedModel":
    """The model without its head, or itself if it has none; Llama 4 names another module than the one that it has."""
    from transformers import PreTrainedModel

    if inner.base_model is not inner:
        return inner.base_model
    return next((child for child in inner.children() if isinstance(child, PreTrainedModel)), inner)


@dataclass(frozen=True)
class Isolation:
    """Whether a model keeps packed documents apart; true where it does."""

    reason: str
    """Why not, one line that begins with the model's name; empty where it does."""

    def __bool__(self) -> bool:
        return not self.reason


def isolate_documents(model: nn.Module) -> Isolation:
    """Choose an attention that keeps packed documents apart, and prove that the model then does so.

    sdpa is replaced by ``relax.attention``; flash attention is told where documents begin; eager and flex attention see
    it in the position ids. A model that cannot (recurrent state, ALiBi, ...) is left as it was.
    """
    inner = base_model(model)
    if inner.config._attn_implementation == "sdpa":
        import relax.attention  # noqa: F401  registers it

        inner.set_attn_implementation("documents")
    reason = _reason_against_packing(model)
    if reason:
        restore_attention(model)
    return Isolation(reason)


def _reason_against_packing(model: nn.Module) -> str:
    inner = base_model(model)
    if inner.config.get_text_config().to_dict().get("attn_temperature_tuning"):  # Llama 4, beyond 8,192 tokens
        return f"{type(inner).__name__} scales its attention by a token's place in the row (attn_temperature_tuning)"
    embedding = inner.get_input_embeddings()
    with evaluating(model):
        fault = isolation.find_fault(
            lambda batch: _base_output(model, batch).last_hidden_state[0],
            embedding,
            vocabulary=embedding.num_embeddings,
            device=inner.device,
        )
    if not fault:
        return ""
    attention = "sdpa" if inner.config._attn_implementation == "documents" else inner.config._attn_implementation
    cause = "through a recurrent state" if inner._is_stateful else f"with attn_implementation={attention}"
    return f"{type(inner).__name__} {fault} {cause}"


def check_companion(what: str, model: nn.Module, policy: nn.Module) -> None:
    """Refuse a model that does not know every token which a policy writes.

    Args:
        what: it is called in messages.
        model: a reference or a critic.
        policy: whose tokens it reads.

    Raises:
        UserError: its embedding has fewer rows.
    """
    known, needed = (base_model(m).get_input_embeddings().num_embeddings for m in (model, policy))
    if known < needed:
        raise UserError(
            f"{what} must know the tokens of the policy, it has {known} and the policy {needed}; give another"
        )


def isolate_companion(what: str, model: nn.Module) -> None:
    """Let a model read documents that are packed for the policy.

    Raises:
        UserError: it cannot keep them apart.
    """
    isolation = isolate_documents(model)
    if not isolation:
        raise UserError(
            f"{what} must keep packed documents apart, as the policy does, {isolation.reason}; use --layout=padded"
        )


def restore_attention(model: nn.Module) -> None:
    """Undo ``isolate_documents``."""
    inner = base_model(model)
    if inner.config._attn_implementation == "documents":
        inner.set_attn_implementation("sdpa")


def check_head(model: nn.Module) -> None:
    """Refuse a model whose own logits are not ``head(hidden state)``: its loss here would be another one's.

    Raises:
        UserError: the logits differ, are no numbers, or the model sees later tokens.
    """
    inner = base_model(model)
    ids = _some_ids(model, 4)
    with evaluating(model), torch.no_grad():
        theirs = inner(input_ids=ids, use_cache=False).logits[0]
        ours = language_head(model)(body(inner)(input_ids=ids, use_cache=False).last_hidden_state[0])
        shorter = inner(input_ids=ids[:, :-1], use_cache=False).logits[0]
    if theirs.isnan().any():
        raise UserError(f"{type(inner).__name__} gives logits that are no numbers (NaN); its weights are damaged")
    if not isolation.alike(shorter, theirs[:-1]):
        raise UserError(
            f"{type(inner).__name__} looks at the tokens it shall predict; it must be a causal language model, "
            "which for some is a setting of its config (is_decoder)"
        )
    if not isolation.alike(ours, theirs):
        raise UserError(
            f"{type(inner).__name__} changes its logits in a way ReLax does not know, so its loss would be wrong; "
            "supported are a bias, logit_scale, logits_scaling and final_logit_softcapping"
        )


def check_lengths(model: nn.Module, longest: int) -> None:
    """Warn where rows of up to ``longest`` tokens change the rows beside them, however they are laid out.

    Rotary frequencies of type longrope (Phi-3) are those of the longest row of a micro-batch, of type dynamic those of
    the longest row so far.
    """
    config = base_model(model).config.get_text_config().to_dict()
    rope = config.get("rope_parameters") or {}
    for settings in [rope] if "rope_type" in rope else rope.values():  # one for all layers, or one for each type
        kind = settings["rope_type"]
        limit = settings.get("original_max_position_embeddings") or config["max_position_embeddings"]
        if kind in ("longrope", "dynamic") and longest > limit:
            alone = ", or --layout=padded with --micro_batch_size=1" if kind == "longrope" else ""
            warnings.warn(
                f"the longest row has {longest} tokens; more than {limit} change the rotary frequencies ({kind}) of "
                f"other rows too: use --max_length={limit}{alone}",
                stacklevel=2,
            )


def _some_ids(model: nn.Module, count: int) -> Tensor:
    inner = base_model(model)
    vocabulary = inner.get_input_embeddings().num_embeddings
    return torch.arange(1, count + 1, device=inner.device).remainder(vocabulary)[None]  # all different: order shows
