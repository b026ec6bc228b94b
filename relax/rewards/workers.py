"""Reward functions in processes that can be ended: for code that computes long, hangs, or takes the process down.

The processes are started at the first use and stay; one that is ended is replaced. A task is one sample of a plain
function, or a share of the batch of a batched one. Results come in order, whoever is faster.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess, SpawnProcess

import torch

from relax.data.tokens.worker_processes import usable_cores
from relax.rewards.evaluation import Reward, evaluate, took_longer
from relax.rewards.samples import Fault, Outcome, Sample

_CAN_FORK = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe


@dataclass(eq=False)
class _Worker:
    pipe: Connection
    process: ForkProcess | SpawnProcess
    task: int = -1
    deadline: float = 0.0


def default_workers() -> int:
    """A process for every core that this rank may count as its own."""
    # torchrun says the first; Lightning only the second, which on several nodes is too many rather than too few.
    ranks_here = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
    return max(1, usable_cores() // int(ranks_here))


class WorkerPool:
    """Up to ``num_workers`` processes that know ``rewards``; ``close`` ends them, and a later use starts new ones."""

    def __init__(self, rewards: Mapping[str, Reward], num_workers: int) -> None:
        self.num_workers = num_workers
        self._rewards = dict(rewards)
        self._team: list[_Worker] = []

    def evaluate(
        self, which: str, samples: Sequence[Sample], last: Callable[[Outcome], bool] = lambda _: False
    ) -> list[Outcome]:
        """One outcome a sample of ``rewards[which]``, every task within the reward's time limit.

        After an outcome that is ``last`` no task is begun, and those under way are ended; they have no outcome (None).
        """
        tasks = self._cut(self._rewards[which], samples)
        results: list[list[Outcome]] = [[] for _ in tasks]
        waiting, idle, busy = deque(range(len(tasks))), self._living(), list[_Worker]()
        try:
            while waiting or busy:
                while waiting and len(busy) < self.num_workers:
                    worker = idle.pop() if idle else self._start()
                    busy.append(worker)
                    self._hand_over(worker, which, waiting.popleft(), tasks)
                for worker, result in self._collect(busy, which, tasks):
                    busy.remove(worker)
                    results[worker.task] = result
                    if any(map(last, result)):
                        return _in_order(results, tasks)
                    idle += [worker] if worker in self._team else []
        finally:
            if busy:  # interrupted: nobody will ask for their results
                self.close()
        return _in_order(results, tasks)

    def close(self) -> None:
        """End every process."""
        for worker in [*self._team]:
            self._end(worker)

    def _living(self) -> list[_Worker]:
        """The processes, less those that something else has ended since they were last asked."""
        for worker in [*self._team]:
            if not worker.process.is_alive():
                self._end(worker)
        return [*self._team]

    def _cut(self, reward: Reward, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        size = -(-len(samples) // self.num_workers) if reward.signature.batched else 1
        return [samples[start : start + size] for start in range(0, len(samples), max(1, size))]

    def _hand_over(self, worker: _Worker, which: str, task: int, tasks: list[Sequence[Sample]]) -> None:
        limit = self._rewards[which].time_limit_seconds
        worker.task, worker.deadline = task, float("inf") if limit is None else time.monotonic() + limit
        worker.pipe.send((which, tasks[task]))

    def _collect(
        self, busy: list[_Worker], which: str, tasks: list[Sequence[Sample]]
    ) -> list[tuple[_Worker, list[Outcome]]]:
        """Wait until at least one of ``busy`` is done, dead or too late; those, with their results."""
        soonest = min(worker.deadline for worker in busy)
        patience = None if soonest == float("inf") else max(0.0, soonest - time.monotonic())
        ready = wait([worker.pipe for worker in busy], patience)
        done = [(worker, self._receive(worker, len(tasks[worker.task]))) for worker in busy if worker.pipe in ready]
        now = time.monotonic()
        for worker in busy:
            if worker.pipe not in ready and worker.deadline <= now:
                self._end(worker)
                late: Outcome = took_longer(self._rewards[which].time_limit_seconds)
                done.append((worker, [late] * len(tasks[worker.task])))
        return done

    def _receive(self, worker: _Worker, count: int) -> list[Outcome]:
        try:
            outcomes: list[Outcome] = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode or 0
            how = f"was killed by signal {-code} (9 often means: out of memory)" if code < 0 else f"exited with {code}"
            self._end(worker)
            return [Fault(f"ended its process, which {how}", over_limit=True)] * count
        return outcomes

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("fork") if _CAN_FORK else multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        inherited = [ours, *(worker.pipe for worker in self._team)]
        process = context.Process(target=_work, args=(self._rewards, theirs, inherited), daemon=True)
        process.start()
        theirs.close()
        self._team.append(_Worker(ours, process))
        return self._team[-1]

    def _end(self, worker: _Worker) -> None:
        self._team.remove(worker)
        worker.pipe.close()
        worker.process.kill()  # not terminate: a handler that it inherited, or set, might ignore it
        worker.process.join()


def _in_order(results: list[list[Outcome]], tasks: list[Sequence[Sample]]) -> list[Outcome]:
    return [outcome for result, task in zip(results, tasks, strict=True) for outcome in result or [None] * len(task)]


def _work(rewards: Mapping[str, Reward], tasks: Connection, inherited: list[Connection]) -> None:
    """What a process does until its parent has gone, even by kill -9: then nobody else holds the pipe's other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # or a handler that we inherited lets the parent wait at its exit
    torch.set_num_threads(1)  # the threads of the parent did not survive the fork
    for pipe in inherited:
        pipe.close()
    try:
        while True:
            which, samples = tasks.recv()
            tasks.send(evaluate(rewards[which], samples, None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
