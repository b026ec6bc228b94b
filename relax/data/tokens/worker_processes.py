"""Work on many pieces in several processes, results in order. Knows nothing of rows or tokens.

Process w of W does the pieces w, w + W, w + 2 W, ..., and the results are asked for in turn, so the order does not
depend on who is faster, and a process that is ahead waits: at most one finished piece a process is held.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, SpawnProcess
from typing import Any, TypeVar

from relax.errors import TrainingStopped, UserError

T = TypeVar("T")
_CAN_FORK = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe


def usable_cores() -> int:
    """The cores that this process may use: fewer than the machine has, in a container or under a scheduler."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_workers(pieces: int, enough: int) -> int:
    """A process for every core where there are ``enough`` pieces and starting one is cheap and safe; else 0."""
    may_start = _CAN_FORK and not multiprocessing.current_process().daemon
    return usable_cores() if may_start and pieces >= enough and usable_cores() > 1 else 0


def in_order(work: Callable[[int], T], count: int, workers: int) -> Generator[T]:
    """``work(0), ..., work(count - 1)``, done by ``workers`` processes (0: by this one, when asked for).

    However the iteration ends (at its end, by an error, by Ctrl-C, closed), no process is left behind.

    Raises:
        UserError: what ``work`` raised, as if it had been called here.
        TrainingStopped: a process died, of another error or killed by the system.
    """
    if workers == 0:
        yield from map(work, range(count))
        return
    team: list[tuple[Connection, ForkProcess | SpawnProcess]] = []
    try:
        with _tokenizers_without_threads():
            for first in range(min(workers, count)):
                team.append(_start(work, range(first, count, workers), [reader for reader, _ in team]))
        for piece in range(count):
            yield _receive(*team[piece % len(team)])
    finally:
        for reader, process in team:
            reader.close()
            process.kill()  # not terminate: a signal handler of this process, which they inherited, might ignore it
            process.join()


def _start(
    work: Callable[[int], T], pieces: range, others: list[Connection]
) -> tuple[Connection, ForkProcess | SpawnProcess]:
    context = multiprocessing.get_context("fork") if _CAN_FORK else multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, pieces, writer, [reader, *others]), daemon=True)
    process.start()
    writer.close()
    return reader, process


def _run(work: Callable[[int], Any], pieces: range, results: Connection, inherited: list[Connection]) -> None:
    """What a process does. Where the parent has gone, even by kill -9, writing fails: nobody else reads the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    for reader in inherited:
        reader.close()
    try:
        for piece in pieces:
            results.send(work(piece))
    except UserError as error:
        results.send(error)
    except BrokenPipeError:
        pass


def _receive(reader: Connection, process: ForkProcess | SpawnProcess) -> Any:
    try:
        result = reader.recv()
    except (EOFError, OSError):  # the latter: it died while it sent
        process.join()
        code = process.exitcode or 0
        died = f"was killed by signal {-code}" if code < 0 else "failed"
        raise TrainingStopped(
            f"a worker process {died} (its own message, if any, stands above; 9 often means: out of memory)"
        ) from None
    if isinstance(result, UserError):
        raise result
    return result


@contextmanager
def _tokenizers_without_threads() -> Iterator[None]:
    """Processes started in here tokenize on one thread each: more would fight, and threads do not survive a fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
