"""Where the prompts of an iteration come from, and what reward functions are shown of what became of them."""

import warnings
from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor

from relax.data.examples import Row
from relax.data.prompts import EncodedPrompt, PromptDataset, encode_prompts, reward_columns
from relax.data.rows import Rows
from relax.data.sources.dataset_rows import named
from relax.errors import UserError
from relax.experience import Experience
from relax.rewards import Rewards, Sample
from relax.rewards.shown import shown
from relax.rollout import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Asked: TypeAlias = Mapping[int, EncodedPrompt]
"""Prompts by their number in the whole run."""


class PromptSource(Protocol):
    """Prompts that have not been asked yet."""

    @property
    def wanted(self) -> int:
        """What an iteration learns from."""
        ...

    def take(self, count: int) -> Asked:
        """The next ``count``, or fewer where there are no more."""
        ...


class WalkedPrompts:
    """From an endless walk through the prompts of a data set.

    Attributes:
        next: the place in the walk of the first prompt that has not been taken.
    """

    def __init__(self, prompts: PromptDataset, seed: int, start: int, wanted: int) -> None:
        self.prompts, self.walk, self.next, self.wanted = prompts, prompts.walk(seed), start, wanted

    def take(self, count: int) -> Asked:
        """See ``PromptSource``. A place in the walk names a prompt: one that comes again gets other completions."""
        first, self.next = self.next, self.next + count
        places = range(first, self.next)
        return {place: self.prompts[i] for place, i in zip(places, self.walk.indices(first, count), strict=True)}


class GivenPrompts:
    """A batch of prompts from elsewhere."""

    def __init__(self, prompts: PromptDataset) -> None:
        self.left = dict(enumerate(prompts[i] for i in range(len(prompts))))
        self.wanted = len(prompts)

    def take(self, count: int) -> Asked:
        """See ``PromptSource``."""
        numbers = list(self.left)[:count]
        return {number: self.left.pop(number) for number in numbers}


def prepare_prompts(
    data: Rows | PromptDataset, tokenizer: "PreTrainedTokenizerBase", rewards: Rewards, reading: Mapping[str, Any]
) -> PromptDataset:
    """The tokenized prompts of a run, once it is known that ``rewards`` find their columns in the rows.

    Args:
        data: rows, or prompts that are tokenized already.
        tokenizer: the policy's.
        rewards: that will score the answers.
        reading: keywords of ``encode_prompts``.

    Raises:
        UserError: rows that are not at hand, lack a column, or have no prompt that can be asked.
    """
    if isinstance(data, PromptDataset):
        rewards.check_columns(data[0].row.keys())
        return data
    if not isinstance(data, Sized):
        raise UserError(
            "prompts must be at hand, to be asked in any order, got rows that come one after another "
            f"({type(data).__name__}); give a list of them, or drop --streaming"
        )
    where = "training data"
    rows = named(data, where)
    rewards.check_columns(reward_columns(rows, reading["columns"], where=where))
    return encode_prompts(rows, tokenizer, where=where, **reading)


def rows_of(batch: Sequence[Row] | Mapping[str, Any]) -> list[Row]:
    """The rows of a batch: a list of them, or the columns that torch's own ``collate_fn`` makes of text and numbers.

    Raises:
        UserError: columns of something else, which cannot be told apart any more.
    """
    if not isinstance(batch, Mapping):
        return list(batch)
    columns = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in batch.items()}
    lists = [x for x in columns.values() if isinstance(x, list)]
    plain = len(lists) == len(columns) and all(isinstance(value, str | int | float) for x in lists for value in x)
    if not plain or len({len(x) for x in lists}) != 1:
        raise UserError("a batch of prompts must be a list of rows; give DataLoader collate_fn=list")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def prompts_of_batch(
    batch: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", rewards: Rewards, reading: Mapping[str, Any]
) -> PromptDataset:
    """The tokenized prompts of one batch of rows; it goes on without those that are too long.

    Args:
        batch: of all ranks.
        tokenizer, rewards, reading: as for ``prepare_prompts``.

    Raises:
        UserError: rows that lack a column, or have no prompt that can be asked.
    """
    where = "the batch of prompts"
    rewards.check_columns(reward_columns(batch, reading["columns"], where=where))
    prompts = encode_prompts(batch, tokenizer, where=where, **{**reading, "max_dropped_share": 1.0})
    if prompts.report.too_long:
        limit = prompts.report.max_length
        warnings.warn(f"prompts of more than --max_prompt_length={limit} tokens are left out of batches", stacklevel=2)
    return prompts


def samples_of(
    experience: Experience,
    completions: Sequence[int],
    asked: Asked,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
    stop_strings: Sequence[str],
) -> list[Sample]:
    """Some completions as reward functions are shown them."""
    samples = []
    for index in completions:
        prompt, ids = asked[experience.numbers[index // experience.num_samples]], experience.completion(index)
        truncated = bool(experience.completions["truncated"][index])
        samples.append(
            shown(prompt, ids, truncated=truncated, tokenizer=tokenizer, sampling=sampling, stop_strings=stop_strings)
        )
    return samples
