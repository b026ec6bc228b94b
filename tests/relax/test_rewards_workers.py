"""Rewards in processes: in order, ended when late, replaced when dead, gone when closed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import reward_functions

from relax.rewards import Sample, workers
from relax.rewards.binding import read_signature
from relax.rewards.evaluation import Reward
from relax.rewards.samples import Fault, Outcome
from relax.rewards.workers import WorkerPool


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def pool_of() -> Iterator[Callable[..., WorkerPool]]:
    pools = []

    def build(*functions: Any, num_workers: int = 2, seconds: float | None = None) -> WorkerPool:
        named = zip("abc", functions, strict=False)
        rewards = {n: Reward(n, f, read_signature(f, n), time_limit_seconds=seconds) for n, f in named}
        pools.append(WorkerPool(rewards, num_workers))
        return pools[-1]

    yield build
    for pool in pools:
        pool.close()


def samples(*completions: str) -> list[Sample]:
    return [Sample("p", completion, {}) for completion in completions]


def test_results_come_in_order_from_processes_that_stay(pool_of: Callable[..., WorkerPool]) -> None:
    def where(completion: str) -> float:
        time.sleep(0.02 * (completion == "0"))
        return os.getpid() * 1000 + int(completion)

    pool = pool_of(where)
    first, second = ([int(x) for x in pool.evaluate("a", samples(*map(str, range(20))))] for _ in range(2))
    assert [x % 1000 for x in first] == [*range(20)]
    pids = {x // 1000 for x in first}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {x // 1000 for x in second} <= pids


def test_several_functions_share_the_processes_and_batches_are_cut(pool_of: Callable[..., WorkerPool]) -> None:
    def count(completions: list[str]) -> list[int]:
        return [len(completions)] * len(completions)

    pool = pool_of(count, reward_functions.length)
    assert pool.evaluate("a", samples(*"abcde")) == [3, 3, 3, 2, 2]
    assert pool.evaluate("b", samples("abc", "")) == [3, 0]
    assert pool.evaluate("a", []) == []
    assert len(multiprocessing.active_children()) == 2


@pytest.mark.parametrize(
    ("completion", "what"),
    [
        ("hang", "took longer than 1 s"),
        ("spin", "took longer than 1 s"),
        ("die", "ended its process, which was killed by signal 9 (9 often means: out of memory)"),
        ("exit", "ended its process, which exited with 3"),
    ],
)
def test_a_process_is_ended_and_replaced_and_all_others_count(
    pool_of: Callable[..., WorkerPool], completion: str, what: str
) -> None:
    pool = pool_of(reward_functions.misbehave, seconds=1.0)
    wrong: Outcome = Fault(what, over_limit=True)
    for _ in range(2):
        assert pool.evaluate("a", samples("fine", completion, "fine", "fine", completion)) == [1, wrong, 1, 1, wrong]
    assert len(multiprocessing.active_children()) <= 2


def test_an_error_in_a_process_is_told_as_here(pool_of: Callable[..., WorkerPool]) -> None:
    (fault,) = pool_of(reward_functions.misbehave).evaluate("a", samples("raise"))
    assert isinstance(fault, Fault)
    assert fault.what.startswith("raised ZeroDivisionError: division by zero (reward_functions.py:")


def test_a_process_that_was_ended_while_idle_is_replaced(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(reward_functions.length, num_workers=1)
    assert pool.evaluate("a", samples("abc")) == [3]
    (process,) = multiprocessing.active_children()
    process.kill()
    process.join()
    assert pool.evaluate("a", samples("abc")) == [3]


def test_an_interrupted_use_leaves_no_result_for_the_next_one(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(reward_functions.length)

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pool, "_collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.evaluate("a", samples("abc", "a"))
    assert multiprocessing.active_children() == []
    assert pool.evaluate("a", samples("x", "xx")) == [1, 2]


HELD: list[WorkerPool] = []  # as a trainer holds it, to the end of the process


def _parent(said: int, killed: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in a run that saves before it stops
    signature = read_signature(reward_functions.length, "a")
    pool = WorkerPool({"a": Reward("a", reward_functions.length, signature)}, 3)
    HELD.append(pool)
    pool.evaluate("a", samples("a", "b", "c"))
    os.write(said, b"ready")
    time.sleep(60 * killed)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "forgetful"])
def test_no_process_survives_its_parent(killed: bool) -> None:
    heard, said = os.pipe()
    parent = multiprocessing.get_context("fork").Process(target=_parent, args=(said, killed))
    parent.start()
    os.close(said)
    try:
        assert os.read(heard, 5) == b"ready"
        if killed:
            parent.kill()
        parent.join(10)
        assert parent.exitcode == (-9 if killed else 0)
        assert os.read(heard, 1) == b"", "it ends when the last process that can write to it has gone"
    finally:
        parent.kill()
        parent.join()
        os.close(heard)


def test_where_processes_are_not_forked_they_are_spawned(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CAN_FORK", False)
    assert pool_of(reward_functions.length, num_workers=1).evaluate("a", samples("abc")) == [3]


def test_ranks_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert workers.default_workers() == 16
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert workers.default_workers() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers.default_workers() == 2
