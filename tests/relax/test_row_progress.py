"""How far a pass over rows is: lines in a log, a bar on a terminal, and nothing of a quick one."""

import io
import sys
from collections.abc import Iterator

import pytest

from relax.data.tokens.row_progress import count_rows


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def pieces(clock: list[float], seconds: float) -> Iterator[tuple[int, str]]:
    for letter in "abcd":
        clock[0] += seconds
        yield 1000, letter


def test_lines_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert [*count_rows(pieces(clock, 6), 4000, "Tokenizing a.jsonl")] == ["a", "b", "c", "d"]
    assert capsys.readouterr().err.splitlines() == [
        "Tokenizing a.jsonl: 2,000 of 4,000 rows, 167 rows/s, 12 s left",
        "Tokenizing a.jsonl: 4,000 of 4,000 rows, 167 rows/s, 0 s left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, False), (2.5, True)])
def test_a_bar_on_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch, seconds: float, shown: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert len([*count_rows(pieces(clock, seconds), 4000, "Tokenizing [a].jsonl")]) == 4
    assert ("4000/4000" in terminal.getvalue()) == shown
    assert ("Tokenizing [a].jsonl" in terminal.getvalue()) == shown


def test_a_quick_pass_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert len([*count_rows(pieces(clock, 1), 4000, "Tokenizing")]) == 4
    assert capsys.readouterr().err == ""
