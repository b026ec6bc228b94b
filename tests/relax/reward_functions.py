"""Reward functions as users write them: found by dotted path, plain, batched and async, right and wrong."""

import asyncio
import os
import time
from typing import Any


def length(completion: str) -> float:
    return float(len(completion))


def same(completions: list[str], answer: list[str]) -> list[float]:
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def trl_style(prompts: list[Any], completions: list[str], **columns: Any) -> list[float | None]:
    return [None if level is None else float(level) for level in columns["level"]]


async def slow_length(completion: str, factor: float = 1.0) -> float:
    await asyncio.sleep(0.05)
    return factor * len(completion)


async def slow_batch(completions: list[str]) -> list[float]:
    await asyncio.sleep(0.01)
    return [float(len(c)) for c in completions]


class Scaled:
    """Built with arguments, from ``=`` or init_args."""

    def __init__(self, factor: float, shift: float = 0.0) -> None:
        self.factor, self.shift = factor, shift

    def __call__(self, completion: str) -> float:
        return self.factor * len(completion) + self.shift


class Strict:
    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def __call__(self, completion: str) -> float:
        return float(self.strict)


class Uncallable:
    pass


def misbehave(completion: str) -> Any:
    """Does what the completion says."""
    match completion:
        case "raise":
            return 1 / 0
        case "hang":
            time.sleep(60)
        case "spin":
            return 9**9**9  # one call that holds Python's lock
        case "die":
            os.kill(os.getpid(), 9)
        case "exit":
            os._exit(3)
        case "nan":
            return float("nan")
        case "text":
            return "0.5"
    return 1.0


def misbehave_together(completions: list[str]) -> Any:
    if "short" in completions:
        return [1.0]
    return "abc" if "text" in completions else [misbehave(c) for c in completions]


async def misbehave_async(completion: str) -> Any:
    if completion == "hang":
        await asyncio.sleep(60)
    if completion == "block":
        time.sleep(60)
    return misbehave(completion)
