"""Reading prompts: the model's own attention and masks over left-padded rows, long ones in pieces."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache


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
