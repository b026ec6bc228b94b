"""Several reward functions as one: the weighted sum of their scores, and what happens when one gives none."""

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from relax import checks
from relax.errors import UserError
from relax.rewards.building import build_functions
from relax.rewards.evaluation import Reward, evaluate
from relax.rewards.samples import Fault, Outcome, RewardFailed, Sample, Score, quote
from relax.rewards.specs import Entry
from relax.rewards.workers import WorkerPool, default_workers


@dataclass(frozen=True)
class Scores:
    """What a batch of samples scored.

    Attributes:
        total: The weighted sum of the functions that apply, one a sample.
        by_function: Each function's own scores, without its weight; None where it does not apply.
        num_faults: For each function, how often it gave no score and ``on_error`` stood in.
    """

    total: list[float]
    by_function: dict[str, list[Score]]
    num_faults: dict[str, int]

    def means(self) -> dict[str, float]:
        """The mean of each function over the samples that it applies to; functions without any are left out."""
        applied = {name: [s for s in scores if s is not None] for name, scores in self.by_function.items()}
        return {name: math.fsum(scores) / len(scores) for name, scores in applied.items() if scores}


class Rewards:
    """The reward functions of a run. Worker processes, if any, are started at the first use; `close` ends them."""

    def __init__(
        self, functions: Sequence[Reward], *, on_error: float | Literal["stop"] = "stop", workers: int | None = None
    ) -> None:
        self.functions = tuple(functions)
        self.on_error = on_error
        isolated = {reward.name: reward for reward in functions if reward.isolated}
        self._pool = WorkerPool(isolated, default_workers() if workers is None else workers)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a ``UserError`` unless the data have every column that a function needs; for the start of a run."""
        for reward in self.functions:
            reward.signature.check_columns(reward.name, columns)

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score ``samples``; a function does not apply to rows that lack a column which it needs.

        Raises:
            RewardFailed: a function raised, took too long, or returned something else than a finite number, and
                ``on_error`` is ``stop``; or no function applies to some sample.
        """
        by_function: dict[str, list[Score]] = {}
        num_faults: dict[str, int] = {}
        for reward in self.functions:
            outcomes = self._outcomes(reward, samples)
            resolved = [self._resolve(reward, *pair) for pair in zip(samples, outcomes, strict=True)]
            faults = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
            by_function[reward.name], num_faults[reward.name] = resolved, len(faults)
            if faults:
                self._warn(reward, faults, len(samples))
        columns = zip(*by_function.values(), strict=True)
        total = [self._total(sample, scores) for sample, scores in zip(samples, columns, strict=True)]
        return Scores(total, by_function, num_faults)

    def close(self) -> None:
        """End the worker processes; a later `score` starts new ones."""
        self._pool.close()

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _outcomes(self, reward: Reward, samples: Sequence[Sample]) -> list[Outcome]:
        fitting = [i for i, sample in enumerate(samples) if reward.signature.fits(sample.row)]
        chosen = [samples[i] for i in fitting]
        outcomes: list[Outcome] = [None] * len(samples)
        if not chosen:
            return outcomes

        def stops(outcome: Outcome) -> bool:
            return self.on_error == "stop" and isinstance(outcome, Fault) and not _scores_over_limit(reward, outcome)

        if reward.isolated and self._pool.num_workers > 0:
            results = self._pool.evaluate(reward.name, chosen, stops)
        else:
            results = evaluate(reward, chosen, reward.time_limit_seconds, stops)
        for i, outcome in zip(fitting, results, strict=False):  # behind one that stops the run there may be none
            over = isinstance(outcome, Fault) and _scores_over_limit(reward, outcome)
            outcomes[i] = reward.score_over_limit if over else outcome
        return outcomes

    def _resolve(self, reward: Reward, sample: Sample, outcome: Outcome) -> Score:
        if not isinstance(outcome, Fault):
            return outcome
        if self.on_error == "stop":
            raise RewardFailed(
                f"reward {reward.name!r} {outcome.what}; {quote(sample)}; mend the function, or let such completions "
                "score a number, as with --reward_on_error=0"
            )
        return self.on_error

    def _warn(self, reward: Reward, faults: Sequence[Fault], count: int) -> None:
        warnings.warn(
            f"reward {reward.name!r} failed on {len(faults)} of {count} completions, which score {self.on_error} as "
            f"--reward_on_error says; the first one {faults[0].what}",
            stacklevel=3,
        )

    def _total(self, sample: Sample, scores: Sequence[Score]) -> float:
        weights = [reward.weight for reward in self.functions]
        terms = [weight * score for weight, score in zip(weights, scores, strict=True) if score is not None]
        if not terms:
            needed = {name for reward in self.functions for name in reward.signature.required}
            has = f"needed are {', '.join(sorted(needed)) or 'none'}, the row has {', '.join(sample.row) or 'none'}"
            raise RewardFailed(
                f"no reward function applies to a row: each returned None or lacks a column ({has}); {quote(sample)}; "
                "leave such rows out"
            )
        return math.fsum(terms)


def _scores_over_limit(reward: Reward, fault: Fault) -> bool:
    return fault.over_limit and reward.score_over_limit is not None


def build_rewards(
    rewards: Entry | Sequence[Entry],
    *,
    on_error: Any = "stop",
    time_limit_seconds: float | None = 60.0,
    workers: int | None = None,
) -> Rewards:
    """The reward functions that ``rewards`` names (see ``relax.rewards.specs``), ready to score.

    Args:
        rewards: ``--rewards``: text such as ``math:1.0,format:0.2``, functions, mappings, or a list of those.
        on_error: ``--reward_on_error``: ``stop``, or the score that stands in for one that a function failed to give.
        time_limit_seconds: ``--reward_time_limit``: for one call of a function of your own; None: no limit.
        workers: ``--reward_workers``: processes for built-in functions that compute long, and then for your own, too;
            by default one a core, without your own; 0: none, so that code which hangs and holds Python's lock cannot
            be ended.

    Raises:
        UserError: a setting out of range, or an entry that cannot be read, found or built.
    """
    checks.positive(reward_time_limit=time_limit_seconds)
    checks.between(0, 4096, reward_workers=workers)
    number = isinstance(on_error, (int, float)) and not isinstance(on_error, bool) and math.isfinite(on_error)
    if on_error != "stop" and not number:
        raise UserError(f"--reward_on_error must be stop or a finite number, got {on_error!r}")
    functions = build_functions(rewards, time_limit_seconds=time_limit_seconds, isolate_own=bool(workers))
    if workers and not any(reward.isolated for reward in functions):
        warnings.warn(
            f"--reward_workers={workers} has no effect: none of the rewards computes in processes", stacklevel=2
        )
    return Rewards(functions, on_error=on_error, workers=workers)
