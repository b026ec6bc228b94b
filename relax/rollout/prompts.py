"""Reading prompts: the model's own attention and masks over left-padded rows, long ones in pieces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from relax.rollout.attention_choice import use_attention
from relax.rollout.scheduler import Group


@dataclass(frozen=True)
class ReadPrompts:
    """P prompts that the model has read."""

    cache: DynamicCache
    """Keys and values, right-aligned."""
    lengths: list[int]
    """[P], tokens."""
    copies: list[int]
    """[P], how many rows want to go on from each."""
    logits: Tensor
    """[rows, V], of the rows' first tokens."""


class PromptReader:
    """Reads the prompts of groups with the attention that the model has now.

    Args:
        model: a causal language model.
        piece_tokens: prompt tokens that go through it at one time.
    """

    def __init__(self, model: PreTrainedModel, piece_tokens: int) -> None:
        self._model, self._piece_tokens = model, piece_tokens
        self._attention = model.config._attn_implementation

    def read(self, groups: Sequence[Group]) -> Iterator[ReadPrompts]:
        """In parts, in order, each dropped before the next is read."""
        use_attention(self._model, self._attention)
        for run in split_prompts([len(group.prompt) for group in groups], self._piece_tokens):
            part = groups[run.start : run.stop]
            cache, logits = read_prompts(self._model, [group.prompt for group in part], self._piece_tokens)
            copies = [len(group.rows) for group in part]
            first = logits.repeat_interleave(torch.tensor(copies).to(logits.device), 0)
            yield ReadPrompts(cache, [len(group.prompt) for group in part], copies, first)


def read_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], piece_tokens: int
) -> tuple[DynamicCache, Tensor]:
    """Keys and values of P prompts, right-aligned, and the logits [P, V] after the last token of each.

    Args:
        model: a causal language model.
        prompts: P lists of token ids.
        piece_tokens: tokens, padding included, that go through the model at one time; at least one column of them.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts]).to(model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
    positions = torch.arange(longest, device=ids.device) - (longest - lengths)[:, None]  # [P, T], negative: padding
    mask = (positions >= 0).long()
    cache = DynamicCache(config=model.config)
    step = max(piece_tokens // len(prompts), 1)
    for begin in range(0, longest, step):
        end = min(begin + step, longest)
        logits = model(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, begin:end].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    return cache, logits[:, -1]


def split_prompts(lengths: Sequence[int], budget_tokens: int) -> list[range]:
    """Cut prompts into runs of neighbours whose padded size stays within the budget; a longer prompt is alone."""
    runs: list[range] = []
    begin = longest = 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if place > begin and (place + 1 - begin) * longest > budget_tokens:
            runs.append(range(begin, place))
            begin, longest = place, length
    return [*runs, range(begin, len(lengths))]
