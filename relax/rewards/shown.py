"""A completion as reward functions are shown it, in training and in evaluation alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from relax.data.prompts import EncodedPrompt
from relax.rewards.samples import Sample
from relax.rollout.texts import completion_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from relax.rollout import Sampling


def shown(
    prompt: EncodedPrompt,
    ids: list[int],
    *,
    truncated: bool,
    tokenizer: "PreTrainedTokenizerBase",
    sampling: "Sampling",
    stop_strings: Sequence[str],
) -> Sample:
    """The answer ``ids`` to ``prompt`` with its text, without what ended it."""
    text = completion_text(tokenizer, ids, stop_ids=sampling.stop_ids, stop_strings=stop_strings)
    return Sample(prompt.prompt, text, prompt.row, ids, truncated)
