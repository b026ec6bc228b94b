"""How far a pass over many rows is: a bar on a terminal, now and then a line in a log file, nothing if it is quick."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0


def count_rows(pieces: Iterable[tuple[int, T]], total: int, what: str) -> Iterator[T]:
    """The pieces, each given with its number of rows, while stderr tells how many of ``total`` rows have gone by."""
    console = Console(stderr=True)
    display: _Bar | _Lines = _Bar(console, total, what) if console.is_terminal else _Lines(total, what)
    rows = 0
    try:
        for size, piece in pieces:
            yield piece
            rows += size
            display.show(rows)
    finally:
        display.close()


class _Bar:
    def __init__(self, console: Console, total: int, what: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
        )
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self.task = self.progress.add_task(what, total=total)
        self.begun, self.shown = time.monotonic(), False

    def show(self, rows: int) -> None:
        if not self.shown and time.monotonic() - self.begun > QUIET_SECONDS:
            self.progress.start()
            self.shown = True
        self.progress.update(self.task, completed=rows)

    def close(self) -> None:
        if self.shown:
            self.progress.stop()


class _Lines:
    def __init__(self, total: int, what: str) -> None:
        self.total, self.what = total, what
        self.begun = self.last = time.monotonic()

    def show(self, rows: int) -> None:
        now = time.monotonic()
        if now - self.last < LINE_SECONDS:
            return
        self.last = now
        rate = rows / (now - self.begun)
        left = (self.total - rows) / rate
        text = f"{self.what}: {rows:,} of {self.total:,} rows, {rate:,.0f} rows/s, {left:,.0f} s left"
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is open."""
