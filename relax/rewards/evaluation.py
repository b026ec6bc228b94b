"""Calls one reward function on samples, in this process, and tells scores from faults. Never raises for a fault."""

import asyncio
import math
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relax.rewards.binding import Signature
from relax.rewards.deadline import call_each
from relax.rewards.samples import Fault, Outcome, Sample, one_line

MAX_CONCURRENT = 64  # calls of an async function that are under way together
_GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Reward:
    """A function that scores completions, and how it is run.

    Attributes:
        name: In messages and figures.
        weight: Its share in the total.
        time_limit_seconds: For one call; None: never given up.
        isolated: Run in worker processes, which can be ended whatever they do; each has its own copy of the function
            and of what it remembers. Not for async functions.
        score_over_limit: The score where the time limit passes or the process dies; None: that is a fault.
    """

    name: str
    function: Callable[..., Any]
    signature: Signature
    weight: float = 1.0
    time_limit_seconds: float | None = 60.0
    isolated: bool = False
    score_over_limit: float | None = None


def evaluate(
    reward: Reward, samples: Sequence[Sample], seconds: float | None, last: Callable[[Outcome], bool] = lambda _: False
) -> list[Outcome]:
    """One outcome a sample, each call limited to ``seconds``; none behind one of a call of its own that is ``last``."""
    if reward.signature.is_async:
        rounds = 1 if reward.signature.batched else math.ceil(len(samples) / MAX_CONCURRENT)
        # Limits inside the event loop fail where a function blocks the loop itself.
        whole = None if seconds is None else seconds * rounds + _GRACE_SECONDS
        work = _batch_async if reward.signature.batched else _each_async
        done = _guarded(lambda: asyncio.run(work(reward, samples, seconds)), whole)
        return [done] * len(samples) if isinstance(done, Fault) else done
    if reward.signature.batched:
        arguments = reward.signature.batch_arguments(samples)
        return _read_scores(_guarded(lambda: reward.function(**arguments), seconds), len(samples))
    return call_each([partial(_evaluate_one, reward, sample) for sample in samples], seconds, took_longer, last)


def _evaluate_one(reward: Reward, sample: Sample) -> Outcome:
    arguments = reward.signature.arguments(sample)
    return _read_score(_caught(lambda: reward.function(**arguments)))


async def _each_async(reward: Reward, samples: Sequence[Sample], seconds: float | None) -> list[Outcome]:
    free = asyncio.Semaphore(MAX_CONCURRENT)

    async def one(sample: Sample) -> Outcome:
        async with free:
            return _read_score(await _guarded_async(reward.function(**reward.signature.arguments(sample)), seconds))

    return list(await asyncio.gather(*map(one, samples)))


async def _batch_async(reward: Reward, samples: Sequence[Sample], seconds: float | None) -> list[Outcome]:
    result = await _guarded_async(reward.function(**reward.signature.batch_arguments(samples)), seconds)
    return _read_scores(result, len(samples))


def _guarded(call: Callable[[], Any], seconds: float | None) -> Any:
    """What ``call`` gives, or the fault that it is."""
    [result] = call_each([lambda: _caught(call)], seconds, took_longer)
    return result


def _caught(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001, the mixture says what follows
        return _raised(error)


async def _guarded_async(call: Coroutine[Any, Any, Any], seconds: float | None) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await call
    except Exception as error:  # noqa: BLE001, as above
        return took_longer(seconds) if limit.expired() else _raised(error)


def took_longer(seconds: float | None) -> Fault:
    """The fault of a call that was given up."""
    return Fault(f"took longer than {seconds:g} s", over_limit=True)


def _raised(error: BaseException) -> Fault:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Fault(f"raised {type(error).__name__}: {one_line(str(error))} ({Path(last.filename).name}:{last.lineno})")


def _read_scores(result: Any, count: int) -> list[Outcome]:
    """What a batched function gave for ``count`` samples; a fault of the whole call is every sample's."""
    if isinstance(result, (torch.Tensor, np.ndarray)):
        result = result.tolist()
    if not isinstance(result, (Sequence, Fault)) or isinstance(result, str):
        result = Fault(f"returned {_describe(result)} instead of a list of scores")
    elif not isinstance(result, Fault) and len(result) != count:
        result = Fault(f"returned {len(result)} scores for {count} completions")
    if isinstance(result, Fault):
        return [Fault(f"{result.what}, in a call on {count} completions", result.over_limit)] * count
    return [_read_score(value) for value in result]


def _read_score(value: Any) -> Outcome:
    if value is None or isinstance(value, Fault):
        return value
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, np.bool_):
        value = bool(value)
    if not isinstance(value, Real):
        return Fault(f"returned {_describe(value)} instead of a number or None")
    return float(value) if math.isfinite(value) else Fault(f"returned {value}")


def _describe(value: object) -> str:
    return one_line(f"{value!r} (of type {type(value).__name__})", 120)
