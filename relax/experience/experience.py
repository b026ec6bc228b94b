"""One iteration's completions with all that is known of them, of all ranks, on the CPU: what a checkpoint can hold.

Legend: P prompts, G completions of each, S = P x G completions, N tokens of all of them, end to end.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relax.data.tokens.tokenized import TokenizationReport, TokenizedDataset
from relax.rollout import Rollouts


@dataclass(frozen=True)
class Experience:
    """Completion ``i`` answers prompt ``i // num_samples``."""

    prompts: list[list[int]]
    """[P], token ids."""
    numbers: list[int]
    """[P], what each prompt is called in the whole run; its noise is a function of it."""
    num_samples: int
    """G"""
    ids: Tensor
    """[N], int64, tokens of the completions."""
    lengths: Tensor
    """[S], int64, tokens of each; at least 1."""
    tokens: dict[str, Tensor]
    """[N] each: ``logprobs`` when sampled, and what a trainer adds (``ref_logprobs``, ``entropy``, ...)."""
    completions: dict[str, Tensor]
    """[S] each: ``truncated`` (bool, cut off), and what a trainer adds (``score``, ``reward/NAME``, ``advantage``)."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], numbers: Sequence[int], rollouts: Rollouts) -> "Experience":
        """What an engine gave for ``prompts``."""
        truncated = torch.tensor([reason == "length" for reason in rollouts.finish_reasons])
        return cls(
            [list(prompt) for prompt in prompts],
            list(numbers),
            rollouts.num_samples,
            rollouts.ids,
            rollouts.lengths,
            {"logprobs": rollouts.logprobs},
            {"truncated": truncated},
        )

    @classmethod
    def joined(cls, parts: Iterable["Experience"]) -> "Experience":
        """Several behind one another; those without a prompt are left out, unless there are no others."""
        parts = list(parts)
        parts = [part for part in parts if part.prompts] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return cls(
            [prompt for part in parts for prompt in part.prompts],
            [number for part in parts for number in part.numbers],
            first.num_samples,
            torch.cat([part.ids for part in parts]),
            torch.cat([part.lengths for part in parts]),
            {name: torch.cat([part.tokens[name] for part in parts]) for name in first.tokens},
            {name: torch.cat([part.completions[name] for part in parts]) for name in first.completions},
        )

    def __len__(self) -> int:
        """S"""
        return len(self.lengths)

    @property
    def groups(self) -> Tensor:
        """[S], int64: the prompt of each completion."""
        return torch.arange(len(self.prompts)).repeat_interleave(self.num_samples)

    def prompt(self, index: int) -> list[int]:
        """The tokens that completion ``index`` answers."""
        return self.prompts[index // self.num_samples]

    def completion(self, index: int) -> list[int]:
        """The tokens of completion ``index``, the one that ended it included."""
        ids: list[int] = self.ids[self.span(index)].tolist()
        return ids

    def span(self, index: int) -> slice:
        """Where the tokens of completion ``index`` lie."""
        end = int(self.ends[index])
        return slice(end - int(self.lengths[index]), end)

    @cached_property
    def ends(self) -> Tensor:
        """[S], where each completion ends."""
        return self.lengths.cumsum(0)

    def with_tokens(self, **columns: Tensor) -> "Experience":
        """The same, and more is known of each token."""
        return replace(self, tokens=self.tokens | columns)

    def with_completions(self, columns: dict[str, Tensor]) -> "Experience":
        """The same, and more is known of each completion."""
        return replace(self, completions=self.completions | columns)

    def chosen(self, prompts: Sequence[int]) -> "Experience":
        """The groups of some prompts, in the order given."""
        rows = [p * self.num_samples + sample for p in prompts for sample in range(self.num_samples)]
        at = self.token_places(rows)
        where = torch.tensor(rows, dtype=torch.int64)
        return Experience(
            [self.prompts[p] for p in prompts],
            [self.numbers[p] for p in prompts],
            self.num_samples,
            self.ids[at],
            self.lengths[where],
            {name: column[at] for name, column in self.tokens.items()},
            {name: column[where] for name, column in self.completions.items()},
        )

    def token_places(self, completions: Sequence[int]) -> Tensor:
        """Where the tokens of some completions lie, [their tokens], one completion behind the other."""
        chosen = torch.tensor(completions, dtype=torch.int64)
        lengths = self.lengths[chosen]
        starts = (self.ends - self.lengths)[chosen]
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return starts.repeat_interleave(lengths) + within

    @cached_property
    def sequences(self) -> TokenizedDataset:
        """Prompt and completion of each, the completion as training target."""
        prompts = [np.asarray(prompt, dtype=np.int32) for prompt in self.prompts]
        completions = np.split(self.ids.numpy().astype(np.int32), self.ends[:-1].numpy())
        parts = [x for i, ids in enumerate(completions) for x in (prompts[i // self.num_samples], ids)]
        lengths = np.array([len(part) for part in parts])
        return TokenizedDataset(
            tokens=np.concatenate(parts),
            loss_mask=np.repeat(np.arange(len(parts)) % 2 == 1, lengths),
            offsets=np.concatenate([np.zeros(1, dtype=np.int64), lengths.reshape(-1, 2).sum(1).cumsum()]),
            source_rows=np.arange(len(self)),
            num_targets=lengths[1::2],
            report=TokenizationReport(rows=len(self)),
            fingerprint="",  # for data that a run can be continued with
        )

    def kl(self) -> float | None:
        """The mean over completions of sum_t (l - l_ref), nats: k1 of the policy that sampled; None: no reference."""
        if "ref_logprobs" not in self.tokens:
            return None
        return float((self.tokens["logprobs"] - self.tokens["ref_logprobs"]).double().sum() / len(self))

    def state(self) -> dict[str, Any]:
        """Numbers and tensors, for a checkpoint."""
        return {field.name: vars(self)[field.name] for field in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Experience":
        """What ``state`` gave."""
        return cls(**state)
