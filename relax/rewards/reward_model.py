"""Scores from a sequence-classification checkpoint: a reward model, or one label of a classifier. Trains nothing.

The checkpoint is a whole model, or a LoRA adapter with its score head, whose base is then loaded, too. Not here: an
adapter that is computed on the policy's own backbone (``relax.rewards.adapter_reward``).
"""

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from relax import checks
from relax.errors import UserError
from relax.hub import hub_arguments, one_line_errors
from relax.quiet import without_load_report
from relax.rewards.reading import AnswerReader, Inputs, Turns, score_texts
from relax.rewards.score_adapter import HEADS, ScoreAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NO_LIMIT = 2**31 - 1


class RewardModel:
    """The head's output for the completion behind its prompt: the logit of one output, or a label's probability.

    A tokenizer with a chat template gets a conversation, one with a separator token (encoders) the two as a pair, any
    other the two as one text. What is too long loses its beginning, with a warning. Scores do not depend on how
    completions are batched. The model stays frozen, in evaluation mode, on one device.

    Args:
        name_or_path: A folder, or a hub name such as ``org/name``, of a model or of an adapter that names its base.
        label: Of a classifier with several outputs: the name of the one that counts.
        batch_size: Completions a forward pass.
        max_length: Tokens of prompt and completion together; by default what the model takes.
        dtype: Of the weights; ``auto``: the stored type. An adapter is float32 where its base is half precision.
        device: By default this process's CUDA device if there is one, else the CPU.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Run the Python code that comes with the model.

    Raises:
        UserError: It cannot be loaded, has no trained head, or ``label`` does not fit it.
    """

    def __init__(
        self,
        name_or_path: str,
        label: str | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        checks.positive(batch_size=batch_size, max_length=max_length)
        source = hub_arguments(name_or_path, revision, trust_remote_code)
        self.model, self.tokenizer = _load(name_or_path, source, dtype)
        self.label = _find_label(self.model, label, name_or_path)
        self.batch_size = batch_size
        self.max_length = max_length or longest_text(self.model, self.tokenizer)
        self.model.requires_grad_(False).eval().to(device or _own_device())
        self._reader = AnswerReader(self.tokenizer, self.max_length)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Turns], completions: Sequence[str]) -> list[float]:
        """One score a completion.

        Raises:
            UserError: A prompt is a list of messages, and the tokenizer has no chat template.
        """
        return score_texts(self._reader, prompts, completions, batch_size=self.batch_size, score=self._forward)

    def _forward(self, rows: list[Inputs]) -> list[float]:
        # Decoders take the output at the last token that is not the pad token. Often that is the end-of-text token as
        # well, and then at the wrong place: an id that does not occur in the batch cannot be mistaken.
        config = self.model.config.get_text_config()
        used = {token for row in rows for token in row["input_ids"]}
        pad = next((token for token in range(config.vocab_size) if token not in used), None)
        if pad is None and len(rows) > 1:
            return [score for row in rows for score in self._forward([row])]
        config.pad_token_id = pad  # None: the output at the last token
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {name: pad or 0 if name == "input_ids" else 0 for name in rows[0]}
        batch = {
            name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
            for name, value in fill.items()
        }
        logits = self.model(**{name: values.to(self.model.device) for name, values in batch.items()}).logits
        scores: list[float] = _read(logits.double(), self.label).tolist()
        return scores


def _read(logits: torch.Tensor, label: int | None) -> torch.Tensor:
    """[B, outputs] -> [B]."""
    return logits[:, 0] if label is None else logits.softmax(-1)[:, label]


def _load(name: str, source: dict[str, Any], dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from relax.sequence_classifier import keep_exact

    adapter = ScoreAdapter.find(name, source)
    with one_line_errors(f"the reward model {name}", name):
        tokenizer = AutoTokenizer.from_pretrained(**source)
    if adapter is not None:
        source = adapter.base_source(source["trust_remote_code"]) | {"num_labels": adapter.num_labels}
    with one_line_errors(f"the reward model {name}", name), without_load_report():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            **source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    missing = sorted(key for key in report["missing_keys"] if adapter is None or not adapter.brings(key))
    if missing:
        raise UserError(
            f"--rewards: {name} has no trained {missing[0]} (a language model is not a reward model); give a "
            "sequence-classification checkpoint"
        )
    for head in (child for child_name, child in model.named_children() if child_name in HEADS):
        keep_exact(head)  # before an adapter brings its own
    return model if adapter is None else adapter.added_to(model), tokenizer


def _find_label(model: "PreTrainedModel", label: str | None, name: str) -> int | None:
    names: dict[str, int] = model.config.label2id
    if model.config.num_labels == 1:
        if label is not None:
            warnings.warn(f"label={label} has no effect: the reward model {name} has one output", stacklevel=3)
        return None
    if label is None or label not in names:
        raise UserError(f"--rewards: {name} has several outputs; give label, one of {', '.join(names)} (got {label})")
    return names[label]


def longest_text(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """What the model's positions and the tokenizer allow; a tokenizer that knows no limit says 1e30."""
    config = model.config.get_text_config()
    spelling = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return min(int(tokenizer.model_max_length), config.to_dict().get(spelling) or _NO_LIMIT)


def _own_device() -> torch.device:
    """Of this process: Lightning makes it the current one before training, but rewards are built earlier."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
