"""A causal language model with a head of one output: the score of a text, read at its last token.

It is transformers' own ``*ForSequenceClassification``, made from a language model or loaded to go on with. Not here:
the loss (``relax.losses.preference``), asking one for rewards (``relax.rewards.reward_model``).

Legend: B sequences, T tokens, D hidden size.
"""

import copy
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from relax import causal_lm, isolation
from relax.data.batching.batches import Batch
from relax.errors import UserError
from relax.hub import hub_arguments, local_folder, one_line_errors
from relax.models import DType, check_folder, check_report, loading_settings, pad_id
from relax.modes import evaluating
from relax.quiet import without_load_report
from relax.report import say
from relax.seeding import mix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_classifier(
    name_or_path: str,
    *,
    dtype: DType | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantize: Literal["4bit"] | None = None,
    seed: int = 0,
    tell: bool = True,
) -> "PreTrainedModel":
    """A sequence classifier of one output: a reward model to go on with, or a causal language model with a fresh head.

    Args:
        name_or_path: An existing folder, or a hub name such as ``org/name``.
        dtype: As for ``relax.models.load_model``, and so are the following four; the head is never less than float32.
        attn_implementation: The same.
        revision: The same.
        trust_remote_code: The same.
        quantize: The same.
        seed: Of the fresh head.
        tell: Say that there is one; not where an adapter is to bring its own.

    Raises:
        UserError: It is not found or not readable, has no safetensors or more than one output, lacks weights, or its
            architecture has no such classifier.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    source = hub_arguments(name_or_path, revision, trust_remote_code)
    settings = loading_settings(dtype, attn_implementation, quantize)
    folder = local_folder(name_or_path)
    if folder is not None:
        check_folder(folder)
    with one_line_errors(f"--model={name_or_path}", name_or_path):
        config = AutoConfig.from_pretrained(**source)
    _check_kind(config, name_or_path)
    with one_line_errors(f"--model={name_or_path}", name_or_path), without_load_report():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            config=_of_one_output(config), **source, **settings
        )
    name, head = _named_head(model)
    check_report(report, name_or_path, beside=name)
    if any(key.startswith(f"{name}.") for key in report["missing_keys"]):
        if tell:
            say(f"{name_or_path} is a language model: a fresh {name} head is put on it")
        _draw(head, seed)
    keep_exact(head)
    return model


def classifier_of(model: "PreTrainedModel", *, seed: int = 0) -> "PreTrainedModel":
    """A classifier with a copy of the weights of a causal language model, and a fresh head; in evaluation mode.

    Raises:
        UserError: The architecture has no such classifier.
    """
    from transformers import AutoModelForSequenceClassification

    _check_kind(model.config, type(model).__name__)
    config = _of_one_output(copy.deepcopy(model.config))
    with torch.random.fork_rng(devices=[]):  # what it draws is replaced
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype).to(model.device).eval()
    name, head = _named_head(classifier)
    missing = classifier.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all(key.startswith(f"{name}.") for key in missing), f"the same body has other weights: {missing}"
    _draw(head, seed)
    return classifier


def score_head(model: nn.Module) -> nn.Module:
    """States [n, D] to scores [n, 1], of a classifier or a PEFT model around one.

    Raises:
        UserError: It has not one output, or something else than one layer behind the last state.
    """
    return _named_head(causal_lm.base_model(model))[1]


def scores(model: nn.Module, batch: Batch) -> Tensor:
    """[K], the score read at each of ``batch.positions``; in full precision at least."""
    hidden, head = causal_lm.hidden_states(model, batch), score_head(model)
    with torch.autocast(hidden.device.type, enabled=False):  # differences of scores count, not their size
        found: Tensor = head(hidden.to(next(head.parameters()).dtype)).squeeze(-1)
    return found.to(torch.promote_types(found.dtype, torch.float32))


def check_score(model: nn.Module) -> None:
    """Refuse a model whose own output is not ``score_head(state of the last token)``: it would be trained as another.

    Raises:
        UserError: The outputs differ, are no numbers, are several, or the model sees later tokens.
    """
    inner, head = causal_lm.base_model(model), score_head(model)
    pad = inner.config.get_text_config().pad_token_id
    rows = inner.get_input_embeddings().num_embeddings
    different = [token for token in range(rows) if token != pad][:4]  # of equal ones, each would look the same
    ids = torch.tensor([different], device=inner.device)
    body = causal_lm.body(inner)
    with evaluating(model), torch.no_grad():
        theirs = inner(input_ids=ids).logits
        states = body(input_ids=ids, use_cache=False).last_hidden_state[0]
        shorter = body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[0]
        ours = head(states[-1:])
    if theirs.isnan().any():
        raise UserError(f"{type(inner).__name__} gives scores that are no numbers (NaN); its weights are damaged")
    if not isolation.alike(shorter, states[:-1]):
        raise UserError(f"{type(inner).__name__} looks at later tokens; a reward model must be a causal language model")
    if not isolation.alike(ours, theirs):
        raise UserError(
            f"{type(inner).__name__} gives another score than its last layer at the last token, so its loss would be "
            "wrong; give a model that transformers scores by one linear layer"
        )


def padding_token(tokenizer: "PreTrainedTokenizerBase", endings: Collection[int]) -> int:
    """The token id to fill rows up with, for all who batch texts of which some end with ``endings``.

    transformers reads a score at the last token that is not padding. The usual choice, the end-of-text token, is the
    last token of what many chat templates write, and the score of such a text would be read one token too early.
    """
    added = sorted(tokenizer.added_tokens_decoder)
    usual = (pad_id(tokenizer), tokenizer.unk_token_id, *added, *range(len(tokenizer)))
    return next(token for token in usual if token is not None and token not in endings)


def _of_one_output(config: "PreTrainedConfig") -> "PreTrainedConfig":
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"
    return config


def _check_kind(config: "PreTrainedConfig", name: str) -> None:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    values = config.to_dict()
    known = "AutoModelForSequenceClassification" in values.get("auto_map", {})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not known:
        raise UserError(
            f"--model={name} is a {config.model_type} model, of which transformers has no sequence classifier; give "
            "another, such as Llama, Qwen or GPT-2"
        )
    if any("SequenceClassification" in kind for kind in config.architectures or []) and config.num_labels != 1:
        raise UserError(
            f"--model={name} has {config.num_labels} outputs; a reward model has one: give such a model, or a causal "
            "language model"
        )


def _named_head(inner: "PreTrainedModel") -> tuple[str, nn.Module]:
    if inner.get_output_embeddings() is not None:
        raise UserError(
            f"{type(inner).__name__} is a language model, which has no score; make it one by load_classifier"
        )
    body = causal_lm.body(inner)
    heads = [(name, child) for name, child in inner.named_children() if child is not body]
    if len(heads) != 1:
        raise UserError(
            f"{type(inner).__name__} must be a decoder with one layer behind it, which gives the score; it has "
            f"{', '.join(name for name, _ in heads) or 'none'}"
        )
    if inner.config.num_labels != 1:
        raise UserError(f"a reward model has one output, {type(inner).__name__} has {inner.config.num_labels}")
    return heads[0]


def _draw(head: nn.Module, seed: int) -> None:
    """Weights of standard deviation 1 / sqrt(D + 1) (arXiv 2009.01325): scores of the size of one for normed states."""
    assert isinstance(head, nn.Linear), "a score head is one layer"
    generator = torch.Generator().manual_seed(mix(seed, "score head"))
    drawn = torch.randn(head.weight.shape, generator=generator) / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        head.weight.copy_(drawn)


def keep_exact(head: nn.Module) -> None:
    """A head of half precision in float32, in place, on states of half precision.

    It is trained beside an adapter, too, and would lose small updates; and scores would have but three digits.
    """
    if next(head.parameters()).dtype in (torch.bfloat16, torch.float16):
        head.float()
        head.register_forward_pre_hook(_as_its_weights)


def _as_its_weights(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(next(head.parameters()).dtype),)
