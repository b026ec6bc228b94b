"""Some completions of an experience and what they scored: which to look at, as rows for a file, as a printed table."""

import math
import random
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.table import Table
from rich.text import Text

from relax.experience import Experience
from relax.seeding import mix
from relax.visible_text import shortened, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SampleRow: TypeAlias = dict[str, Any]
"""``step``, ``prompt``, ``completion``, ``score``, ``reward/NAME``..., ``advantage``, ``tokens``, ``truncated``."""

PRINTED_CHARACTERS = 400
"""Of a prompt or completion in the terminal."""


def spread(scores: Sequence[float], count: int, *, seed: int, step: int) -> list[int]:
    """``count`` of the completions, fewer if there are fewer: the best, the worst and as many steps between them.

    They come best first; of equals, which one is a function of (seed, step).
    """
    order = list(range(len(scores)))
    random.Random(mix("samples", seed, step)).shuffle(order)
    order.sort(key=lambda index: -scores[index])  # stable: equals stay shuffled
    count = min(count, len(order))
    return [order[round(place * (len(order) - 1) / max(count - 1, 1))] for place in range(count)]


def sample_rows(
    experience: Experience, indices: Iterable[int], tokenizer: "PreTrainedTokenizerBase", step: int
) -> list[SampleRow]:
    """The completions at ``indices`` with their prompts, in full, special tokens written out."""
    figures = {name: column for name, column in experience.completions.items() if name != "truncated"}
    ordered = sorted(figures, key=lambda name: (name != "score", not name.startswith("reward/"), name))
    rows = []
    for index in indices:
        prompt, completion = experience.prompt(index), experience.completion(index)
        row = {"step": step, "prompt": _text(tokenizer, prompt), "completion": _text(tokenizer, completion)}
        row |= {name: _number(float(figures[name][index])) for name in ordered}
        truncated = bool(experience.completions["truncated"][index])
        rows.append(row | {"tokens": len(completion), "truncated": truncated})
    return rows


def printed(rows: Sequence[SampleRow], title: str) -> Table:
    """The rows as a table for people: long texts cut in the middle, controls and markup shown, not obeyed."""
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    table.add_column("completion", ratio=3, overflow="fold")
    numbers = [name for name in rows[0] if name not in ("step", "prompt", "completion", "truncated")]
    if sum(name.startswith("reward/") for name in numbers) == 1:  # it says what the score says
        numbers = [name for name in numbers if not name.startswith("reward/")]
    numbers = [name for name in numbers if not all(map(partial(_says_nothing, name), rows))]
    for name in numbers:
        table.add_column(name.removeprefix("reward/"), justify="right")
    for row in rows:
        texts = [visible(shortened(row[name], PRINTED_CHARACTERS)) for name in ("prompt", "completion")]
        figures = ["" if row[name] is None else f"{row[name]:.4g}" for name in numbers]
        figures[numbers.index("tokens")] += " cut off" if row["truncated"] else ""
        table.add_row(*map(Text, [*texts, *figures]))
    return table


def _says_nothing(name: str, row: SampleRow) -> bool:
    """No function failed; the score was not shaped."""
    return (name == "failures" and not row[name]) or (name == "shaped" and row[name] == row["score"])


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _number(value: float) -> float | None:
    """None: the function does not apply."""
    return None if math.isnan(value) else value
