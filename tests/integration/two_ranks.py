"""Two forked processes as the two ranks of a run: they start at once, unlike those that Lightning launches."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only

WITHOUT_END = 120
"""Seconds after which a process is taken to hang."""


def on_two_ranks(function: Callable[[int], object], folder: Path) -> list[int | None]:
    """The exit codes of both, None of one that did not end; what they say lies in ``folder / "said.RANK"``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(function, rank, port, folder)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(WITHOUT_END)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes


def said(folder: Path, rank: int) -> str:
    """What a rank wrote to its standard streams."""
    return (folder / f"said.{rank}").read_text()


def _rank(function: Callable[[int], object], rank: int, port: int, folder: Path) -> None:
    file = os.open(folder / f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    rank_zero_only.rank = rank
    function(rank)
