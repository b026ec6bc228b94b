"""Greedy accuracy: what a model answers when asked held-out prompts, graded by the task. Not a rollout engine."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from relax.errors import UserError
from relax.models import pad_id
from relax.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = Sequence[dict[str, str]]


def accuracy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Rows,
    grade: Callable[[str, str], float],
    batch_size: int = 250,
) -> float:
    """Mean ``grade`` of the greedy completions of ``rows`` (``prompt`` and ``answer``), in [0, 1] for a 0/1 grade.

    A completion must end by itself: one that does not reach end of text within the length of the longest answer
    counts as 0, whatever it says. The model is in eval mode meanwhile; its modes are put back.

    Raises ``UserError`` if there are no rows.
    """
    if not rows:
        raise UserError("accuracy is a mean over rows and got 0 of them: ask for at least 1 evaluation row")
    longest = max(len(tokenizer(row["answer"], add_special_tokens=False)["input_ids"]) for row in rows)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    score = 0.0
    with evaluating(model):
        for batch in batches:
            prompts = [row["prompt"] for row in batch]
            texts = greedy_completions(model, tokenizer, prompts, max_new_tokens=longest + 1)
            score += sum(grade(p, text) for p, text in zip(prompts, texts, strict=True) if text is not None)
    return score / len(rows)


@torch.no_grad()
def greedy_completions(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], max_new_tokens: int
) -> list[str | None]:
    """The most likely continuation of each prompt up to end of text, or None where that was not reached."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    # Padded by hand: some tokenizers have no pad token.
    rows: list[list[int]] = tokenizer(prompts)["input_ids"]
    longest = max(map(len, rows))
    prompt_ids = torch.tensor([[pad_id(tokenizer)] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    ids = model.generate(prompt_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=greedy)
    return [text_before_end(tokenizer, row) for row in ids[:, longest:].tolist()]


def text_before_end(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str | None:
    """Every token before the first end of text, special ones included: dropping them would mend wrong answers."""
    if tokenizer.eos_token_id not in ids:
        return None
    return str(tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)]))
