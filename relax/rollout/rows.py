"""State: the completions that are being written, and what the device must know of them.

Which completions are written at one time is for ``relax.rollout.scheduler`` to say, the next token for
``relax.rollout.sampler``, the model's memory of them lies in ``relax.rollout.slots``.

Legend: n live rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from relax.errors import TrainingStopped
from relax.rollout.protocol import FinishReason
from relax.rollout.sampling import Sampling


@dataclass(eq=False)
class Row:
    """One completion on its way."""

    prompt: Sequence[int]
    key: int
    """Its stream of random numbers."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class LiveRows:
    """The rows being decoded, in the order of the model's batch.

    Tokens stay on the device, in ``pending``, until ``collect`` fetches them: a GPU need not be waited for every step.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, device: torch.device) -> None:
        self.sampling, self._stop_ids = sampling, frozenset(sampling.stop_ids)
        self.rows: list[Row] = []
        self.pending: list[tuple[Tensor, Tensor]] = []
        integers = torch.empty(0, dtype=torch.int64, device=device)
        self.keys, self.ages, self.prompt_lengths = integers, integers, integers
        """[n] int64 each: streams of noise; tokens written, pending ones included; prompt tokens."""
        self.seen = torch.zeros(0, vocabulary, dtype=torch.bool, device=device)
        """[n, V], whether a token is in prompt or completion; [0, V] if no one asks."""

    def __len__(self) -> int:
        """How many rows live."""
        return len(self.rows)

    @property
    def positions(self) -> Tensor:
        """[n], where in its sequence the token that came last stands."""
        return self.prompt_lengths + self.ages - 1

    @property
    def steps_left(self) -> int:
        """Until the first row is full."""
        return self.sampling.max_new_tokens - max(len(row.ids) for row in self.rows) - len(self.pending)

    def add(self, rows: Sequence[Row]) -> None:
        """Put ``rows`` behind those that live."""
        assert not self.pending, "rows move only where no tokens are pending"
        self.rows += rows
        self.keys = _longer(self.keys, [row.key for row in rows])
        self.ages = _longer(self.ages, [0] * len(rows))
        self.prompt_lengths = _longer(self.prompt_lengths, [len(row.prompt) for row in rows])
        if self.sampling.repetition_penalty != 1:
            seen = self.seen.new_zeros(len(rows), self.seen.shape[1])
            for mask, row in zip(seen, rows, strict=True):
                mask[torch.tensor(row.prompt, device=seen.device)] = True
            self.seen = torch.cat([self.seen, seen])

    def append(self, tokens: Tensor, logprobs: Tensor) -> None:
        """One more token [n] for every row."""
        self.pending.append((tokens, logprobs))
        self.ages = self.ages + 1
        if len(self.seen):
            self.seen.scatter_(1, tokens[:, None], True)

    def collect(self) -> list[int]:
        """Write pending tokens into the rows and drop the finished ones; the place in the batch of each that lives on.

        Those among the first places stay, the last ones fill the holes: as few as can be have to move.
        """
        tokens = torch.stack([tokens for tokens, _ in self.pending]).tolist()
        logprobs = torch.stack([logprobs for _, logprobs in self.pending]).tolist()
        self.pending = []
        for step_tokens, step_logprobs in zip(tokens, logprobs, strict=True):
            for row, token, logprob in zip(self.rows, step_tokens, step_logprobs, strict=True):
                self._extend(row, token, logprob)
        places = _survivors([row.finish_reason is None for row in self.rows])
        if len(places) < len(self.rows):
            self._keep(places)
        return places

    def _extend(self, row: Row, token: int, logprob: float) -> None:
        """One more token, unless the row has ended already."""
        if row.finish_reason is not None:
            return
        if logprob != logprob:
            raise TrainingStopped(
                "the policy's logits are not numbers (NaN) or leave no token to choose; training has diverged, "
                "or --min_new_tokens bars every token there is"
            )
        row.ids.append(token)
        row.logprobs.append(logprob)
        if token in self._stop_ids or self._stops(row.ids):
            row.finish_reason = "stop"
        elif len(row.ids) == self.sampling.max_new_tokens:
            row.finish_reason = "length"

    def _stops(self, ids: list[int]) -> bool:
        stop_when = self.sampling.stop_when
        return stop_when is not None and len(ids) > self.sampling.min_new_tokens and stop_when(ids)

    def _keep(self, places: list[int]) -> None:
        index = torch.tensor(places, dtype=torch.int64, device=self.keys.device)
        self.rows = [self.rows[place] for place in places]
        self.keys, self.ages = self.keys[index], self.ages[index]
        self.prompt_lengths = self.prompt_lengths[index]
        if len(self.seen):
            self.seen = self.seen[index]


def _survivors(alive: list[bool]) -> list[int]:
    count = sum(alive)
    movers = [place for place in range(count, len(alive)) if alive[place]]
    return [place if alive[place] else movers.pop() for place in range(count)]


def _longer(numbers: Tensor, new: list[int]) -> Tensor:
    return torch.cat([numbers, torch.tensor(new, dtype=numbers.dtype).to(numbers.device, non_blocking=True)])
