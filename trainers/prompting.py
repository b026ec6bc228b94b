"""Where the prompts of an iteration come from, and what reward functions are shown of what became of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from relax.data.prompts import EncodedPrompt, PromptDataset
from relax.experience import Experience
from relax.rewards import Sample
from relax.rollout import Sampling
from relax.rollout.texts import completion_text

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
        text = completion_text(tokenizer, ids, stop_ids=sampling.stop_ids, stop_strings=stop_strings)
        truncated = bool(experience.completions["truncated"][index])
        samples.append(Sample(prompt.prompt, text, prompt.row, ids, truncated))
    return samples
