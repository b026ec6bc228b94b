"""A reward model that is one more frozen LoRA adapter, with its score head, on the policy's own backbone.

It costs the memory of the adapter alone. Not here: one with a backbone of its own (``relax.rewards.reward_model``).

Legend: B texts, T tokens, D hidden size.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from relax import causal_lm, checks
from relax.adapters import REWARD, insert_adapter, using_adapter
from relax.errors import UserError
from relax.hub import one_line_errors
from relax.lora import check_adapter_fits
from relax.models import check_vocabulary
from relax.modes import evaluating
from relax.rewards.reading import AnswerReader, Inputs, Turns, score_texts
from relax.rewards.reward_model import longest_text
from relax.rewards.score_adapter import ScoreAdapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


class AdapterReward:
    """The head's output at the last token of each completion behind its prompt, as ``RewardModel`` would give it.

    The adapter is called ``reward`` in the policy; it is not trained, in no checkpoint and in no export, and the policy
    computes what it computed before. Texts are read by the folder's tokenizer, which it was trained with.

    Args:
        policy: A PEFT model around a causal language model, of the base that the adapter was trained on.
        tokenizer: The policy's, for a folder without one.
        folder: Of an exported reward model with one output.
        batch_size: Completions a forward pass.
        max_length: Tokens of prompt and completion together; by default what the model takes.

    Raises:
        UserError: The policy has no adapter, or the folder holds no such reward model, or that of another base.
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        folder: str,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
    ) -> None:
        checks.positive(batch_size=batch_size, max_length=max_length)
        named = f"--reward_model={folder}"
        adapter = _one_output(ScoreAdapter.read(folder, named=named))
        self.policy, self.batch_size = _adapted(policy, named), batch_size
        tokenizer = _own_tokenizer(adapter) or tokenizer
        base = causal_lm.base_model(policy)
        check_vocabulary(base, tokenizer)
        _insert(adapter, self.policy)
        self._head = _linear(adapter)
        self._reader = AnswerReader(tokenizer, max_length or longest_text(base, tokenizer))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Turns], completions: Sequence[str]) -> list[float]:
        """One score a completion.

        Raises:
            UserError: A prompt is a list of messages, and the tokenizer has no chat template.
        """
        with evaluating(self.policy), using_adapter(self.policy, REWARD):
            return score_texts(self._reader, prompts, completions, batch_size=self.batch_size, score=self._forward)

    def _forward(self, rows: list[Inputs]) -> list[float]:
        base = causal_lm.base_model(self.policy)
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        # Padding lies on the right, where a causal model never looks: any token will do, and no mask is needed.
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True).to(base.device)  # [B, T]
        hidden = causal_lm.body(base)(input_ids=padded, use_cache=False).last_hidden_state
        last: Tensor = hidden[torch.arange(len(ids)), torch.tensor([len(row) - 1 for row in ids])]  # [B, D]
        last = last.to(torch.promote_types(last.dtype, torch.float32))
        head = self._head.to(last)  # the policy moves to its device when training starts
        with torch.autocast(last.device.type, enabled=False):
            scores: list[float] = head(last).squeeze(-1).tolist()
        return scores


def _adapted(policy: nn.Module, named: str) -> "PeftModel":
    from peft import PeftModel

    if not isinstance(policy, PeftModel):
        raise UserError(f"{named} is an adapter beside the policy's, which has none; add --lora_r=16")
    return policy


def _one_output(adapter: ScoreAdapter) -> ScoreAdapter:
    if adapter.num_labels != 1:
        raise UserError(f"{adapter.named} has {adapter.num_labels} outputs; a reward model beside a policy has one")
    further = sorted(key for key in adapter.lora_weights if "lora_" not in key)
    if further:
        raise UserError(
            f"{adapter.named} changes {further[0]}, too; beside a policy it may be LoRA and a score head only"
        )
    return adapter


def _own_tokenizer(adapter: ScoreAdapter) -> "PreTrainedTokenizerBase | None":
    from transformers import AutoTokenizer

    if not (adapter.folder / "tokenizer_config.json").is_file():
        return None
    with one_line_errors(adapter.named, str(adapter.folder)):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(adapter.folder, local_files_only=True)
    return tokenizer


def _insert(adapter: ScoreAdapter, policy: "PeftModel") -> None:
    from peft import set_peft_model_state_dict

    if REWARD in policy.peft_config:
        raise UserError(
            f"{adapter.named}: the policy has a reward adapter already, and can have only one; drop one of them"
        )
    # Without its dropout, which it never has here: the policy would be taken for a noisy one.
    settings = dataclasses.replace(adapter.settings, task_type="CAUSAL_LM", modules_to_save=None, lora_dropout=0.0)
    with one_line_errors(adapter.named, str(adapter.folder)):
        insert_adapter(policy, REWARD, settings)
    try:
        check_adapter_fits(policy, REWARD, adapter.lora_weights, adapter.named)
    except UserError:
        policy.delete_adapter(REWARD)
        raise
    set_peft_model_state_dict(policy, adapter.lora_weights, adapter_name=REWARD)


def _linear(adapter: ScoreAdapter) -> nn.Linear:
    """The head, in full precision."""
    outputs, size = adapter.head["weight"].shape
    linear = nn.Linear(size, outputs, bias="bias" in adapter.head)
    linear.load_state_dict({name: tensor.float() for name, tensor in adapter.head.items()})
    return linear.requires_grad_(False)
