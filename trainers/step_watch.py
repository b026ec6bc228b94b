"""What is logged of an on-policy optimizer step beside the figures of its loss: rollouts, ratios, seconds, tokens."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import lightning as L
import torch
from torch import Tensor

from relax.ranks import over_ranks


class StepWatch:
    """Takes notes between one optimizer step and the next.

    Attributes:
        rollouts: figures of the current iteration.
        seconds: that each part of it took.
    """

    def __init__(self) -> None:
        self.rollouts: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self._since, self._tokens = 0.0, 0
        self._extremes: list[Tensor] = []

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time towards ``part`` of the iteration."""
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def start(self, rollouts: Mapping[str, float]) -> None:
        """The updates of an iteration begin."""
        self.rollouts = dict(rollouts)
        self._since, self._tokens = time.perf_counter(), 0

    def pause(self, seconds: float) -> None:
        """So long something else than the update went on."""
        self._since += seconds

    def note_tokens(self, tokens: int) -> None:
        """So many more are computed, on this rank."""
        self._tokens += tokens

    def note_ratio(self, ratio: Tensor) -> None:
        """``ratio`` [N] of a micro-batch."""
        if len(ratio):
            self._extremes.append(torch.stack([-ratio.min(), ratio.max()]).float())

    def forget_ratios(self) -> None:
        """The optimizer step is over."""
        self._extremes.clear()

    def figures(self, trainer: L.Trainer) -> dict[str, Tensor]:
        """Since the last time, of all ranks; ``ratio_min`` and ``ratio_max`` of the step."""
        device = trainer.strategy.root_device
        own = torch.stack(self._extremes).amax(0) if self._extremes else torch.full((2,), -torch.inf)
        low, high = trainer.strategy.reduce(own.to(device), reduce_op="max")
        now = time.perf_counter()
        seconds, tokens = now - self._since, over_ranks(trainer, self._tokens, "sum")
        self._since, self._tokens = now, 0
        figures = self.rollouts | {"seconds_update": seconds, "update_tokens_per_second": tokens / seconds}
        extremes = {"ratio_min": -low, "ratio_max": high} if high.isfinite() else {}
        return extremes | {name: torch.tensor(value) for name, value in figures.items()}
