"""Calls that are given up after a time limit each, wherever they hang, from any thread. What hangs is not ended by
this: a thread cannot be; only a process can (``relax.rewards.workers``).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def call_each(
    calls: Sequence[Callable[[], T]],
    seconds: float | None,
    late: Callable[[float], T],
    last: Callable[[T], bool] = lambda _: False,
) -> list[T]:
    """The results of ``calls``, made one after another; what one raises is raised here, and ends them.

    With a limit they are made in one thread, and in a new one after each call that is given up.

    Args:
        seconds: For each call; None: no limit, and no thread.
        late: Given ``seconds``, what stands in for the result of a call that took longer, and may still be running.
            Code that holds Python's lock all the while (a regular expression, a power of huge integers) cannot be
            given up on.
        last: Whether a result is the last that is wanted: no call is begun after it.
    """
    results: list[T] = []
    while len(results) < len(calls) and not (results and last(results[-1])):
        if seconds is None:
            results.append(calls[len(results)]())
            continue
        found, hangs = _Series(calls[len(results) :], last).results_within(seconds)
        results += [*found, late(seconds)] if hangs else found
    return results


class _Series(Generic[T]):
    """Calls that one thread makes, the next as soon as one ends: a thread for each would cost more than most calls."""

    def __init__(self, calls: Sequence[Callable[[], T]], last: Callable[[T], bool]) -> None:
        self._waiting, self._last = deque(calls), last
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._began = time.monotonic()  # the call under way
        self._lock = threading.Lock()  # so that a call either ends or is given up

    def results_within(self, seconds: float) -> tuple[list[T], bool]:
        """The results up to the first call that takes longer than ``seconds``, and whether there was one.

        No other is begun after that one.
        """
        thread = threading.Thread(target=self._work, name="reward", daemon=True)  # at exit nobody waits for it
        try:
            thread.start()
            thread.join(seconds)
            while thread.is_alive():
                left, results = self._look(seconds)
                if left <= 0:
                    return results, True
                thread.join(left)
        finally:
            with self._lock:
                self._waiting.clear()  # after Ctrl-C, too, nothing more is begun
        if self._error is not None:
            raise self._error
        return self._results, False

    def _look(self, seconds: float) -> tuple[float, list[T]]:
        """How long the call under way may still take, and the results before it; out of time, it is the last."""
        with self._lock:
            left = self._began + seconds - time.monotonic()
            if left <= 0:
                self._waiting.clear()
            return left, [*self._results]

    def _work(self) -> None:
        try:
            call: Callable[[], T] | None = self._waiting.popleft()
            while call is not None:
                call = self._next(call())
        except BaseException as error:  # noqa: BLE001, raised again in the caller's thread
            self._error = error

    def _next(self, result: T) -> Callable[[], T] | None:
        with self._lock:
            self._results.append(result)
            self._began = time.monotonic()
            return self._waiting.popleft() if self._waiting and not self._last(result) else None
