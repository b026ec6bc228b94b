"""Work in processes: in order, with the same errors, and nothing left behind whatever ends it."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from relax.data.tokens import worker_processes
from relax.data.tokens.worker_processes import default_workers, in_order, usable_cores
from relax.errors import TrainingStopped, UserError


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_results_come_in_order_whoever_is_faster(workers: int) -> None:
    def work(piece: int) -> tuple[int, bytes]:
        time.sleep(0.02 * (piece % 3 == 0))
        return piece, b"x" * 100_000  # more than a pipe holds

    assert [piece for piece, _ in in_order(work, 10, workers)] == [*range(10)]


def test_it_is_done_elsewhere_and_no_further_ahead_than_asked(tmp_path: Path) -> None:
    def work(piece: int) -> tuple[int, bytes]:
        (tmp_path / str(piece)).touch()
        return os.getpid(), b"x" * 100_000

    results = in_order(work, 50, 2)
    pids = {pid for pid, _ in islice(results, 4)}
    time.sleep(0.2)
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert len([*tmp_path.iterdir()]) <= 8, "memory stays flat when the reader is slow"
    results.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_user_error_arrives_as_itself_after_what_came_before() -> None:
    def work(piece: int) -> int:
        if piece == 3:
            raise UserError("a.jsonl:17: it is broken")
        return piece

    seen = []
    with pytest.raises(UserError, match=r"^a\.jsonl:17: it is broken$"):
        for result in in_order(work, 10, 2):
            seen.append(result)
    assert seen == [0, 1, 2]


def test_another_error_is_told_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def work(piece: int) -> float:
        return 1 / piece

    with pytest.raises(TrainingStopped, match="a worker process failed"):
        list(in_order(work, 4, 2))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_killed_process_is_told() -> None:
    def work(piece: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return piece

    with pytest.raises(TrainingStopped, match=r"was killed by signal 9 .*out of memory"):
        list(in_order(work, 4, 2))


def test_a_process_that_is_killed_while_it_sends_is_told() -> None:
    def work(piece: int) -> tuple[int, bytes]:
        return os.getpid(), b"x" * 1_000_000 * piece  # more than a pipe holds

    results = in_order(work, 2, 1)
    pid, _ = next(results)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainingStopped, match=r"was killed by signal 9 .*out of memory"):
        next(results)


def _parent(said: int) -> None:
    """A process of its own group that lets two others work and says their ids to the file ``said``, as its errors."""

    def work(_: int) -> bytes:
        os.write(said, f"{os.getpid()}\n".encode())
        time.sleep(0.05)
        return b"x" * 100_000

    os.setsid()
    os.dup2(said, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test run was started with
    try:
        for _ in in_order(work, 1000, 2):
            pass
    except KeyboardInterrupt:
        os._exit(7)


@pytest.mark.parametrize(
    ("stop", "to_the_group", "code"),
    [(signal.SIGINT, True, 7), (signal.SIGINT, False, 7), (signal.SIGKILL, False, -9), (signal.SIGTERM, False, -15)],
    ids=["ctrl-c", "interrupted alone", "kill -9", "terminated"],
)
def test_no_process_survives_its_parent(stop: signal.Signals, to_the_group: bool, code: int) -> None:
    heard, said = os.pipe()
    parent = multiprocessing.get_context("fork").Process(target=_parent, args=(said,))
    parent.start()
    os.close(said)
    with os.fdopen(heard) as lines:
        pids = {int(line) for line in islice(lines, 6)}
        assert len(pids) == 2
        assert parent.pid
        (os.killpg if to_the_group else os.kill)(parent.pid, stop)
        parent.join(20)
        assert parent.exitcode == code
        rest = lines.read()  # ends when the last process that can write to it has gone
    assert {int(line) for line in rest.splitlines()} <= pids, "they go without a word"


def test_where_processes_are_not_forked_they_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "_CAN_FORK", False)
    assert default_workers(100_000, 20_000) == 0, "a script that does not guard its main part would run once more"
    assert list(in_order(partial(pow, 2), 3, 1)) == [1, 2, 4]


def test_processes_are_started_where_it_pays() -> None:
    assert default_workers(19_999, 20_000) == 0
    assert default_workers(20_000, 20_000) == (usable_cores() if sys.platform == "linux" and usable_cores() > 1 else 0)


def test_the_tokenizers_setting_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(_: int) -> str | None:
        return os.environ.get("TOKENIZERS_PARALLELISM")

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert list(in_order(seen, 2, 2)) == ["false", "false"]
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert list(in_order(seen, 2, 2)) == ["false", "false"]
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
