"""A call that is given up after a time limit, wherever it hangs, from any thread. What hangs is not ended by this:
a thread cannot be; only a process can (``relax.rewards.workers``).
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class DeadlinePassed(Exception):  # noqa: N818
    """The call was given up; it may still be running."""


class _Call(Generic[T]):
    """A call and what came of it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call
        self.result: list[T] = []
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.result.append(self.call())
        except BaseException as error:  # noqa: BLE001, raised again in the caller's thread
            self.error = error


def call_with_deadline(call: Callable[[], T], seconds: float | None) -> T:
    """``call()``, in a thread of its own if there is a limit; its exceptions are raised here.

    Raises:
        DeadlinePassed: it took longer than ``seconds``. Code that holds Python's lock all the while (a regular
            expression, a power of huge integers) cannot be given up on.
    """
    if seconds is None:
        return call()
    pending = _Call(call)
    thread = threading.Thread(target=pending, name="reward", daemon=True)  # at exit nobody waits for one that hangs
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DeadlinePassed
    if pending.error is not None:
        raise pending.error
    return pending.result[0]
