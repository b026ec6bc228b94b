"""From sampled tokens to the text that the policy wrote, and which tokens end it."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from torch import nn

from relax.causal_lm import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def completion_text(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    *,
    stop_ids: Collection[int],
    stop_strings: Sequence[str] = (),
) -> str:
    """The text of a completion, without what ended it: the stop token, or the stop string and what stands behind it.

    Other special tokens are kept as text: to drop them would mend wrong answers.
    """
    kept = ids[:-1] if ids and ids[-1] in stop_ids else ids
    text = str(tokenizer.decode(list(kept), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    ends = [at for at in (text.find(string) for string in stop_strings) if at >= 0]
    return text[: min(ends)] if ends else text


def end_of_text_ids(model: nn.Module, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens that end a text: those of the model's generation settings, and the tokenizer's; ascending."""
    settings = base_model(model).generation_config
    theirs = None if settings is None else settings.eos_token_id
    known = [*theirs] if isinstance(theirs, list) else [theirs]
    return tuple(sorted({token for token in (*known, tokenizer.eos_token_id) if token is not None}))
