"""What every benchmark here shares: contenders in processes of their own, run in turns, and a table of medians.

Each contender is a process, so its peak memory is its own; only one of them works at a time, in short turns, so a noisy
neighbour hits all alike and the ratio of two contenders in one round means something. Linux only (/proc).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from subprocess import PIPE
from tempfile import TemporaryFile
from typing import Any

PACKAGES = ("torch", "lightning", "transformers", "peft")
MEGABYTE = 1e6


def benchmark_arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run, and roughly how fast")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--json", type=Path, help="also write all measurements to this file")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # set in the processes that are started
    return parser


class Contender:
    """The parent's side of a process that measures one thing when told to."""

    def __init__(self, name: str, threads: int, extra_arguments: Sequence[str] = ()) -> None:
        self.name = name
        command = [sys.executable, *sys.argv, *extra_arguments, f"--contender={name}"]
        settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._output = TemporaryFile("w+")  # noqa: SIM115  read when the process has died
        self._process = subprocess.Popen(
            command, stdin=PIPE, stdout=PIPE, stderr=self._output, text=True, env=os.environ | settings
        )

    def measure(self, task: str = "") -> dict[str, float]:
        """Let it work once and return what it measured.

        Raises:
            RuntimeError: the process has died; with what it printed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(task + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._output.seek(0)
            raise RuntimeError(f"{self.name} ended with code {self._process.wait()}:\n{self._output.read()}")
        measured: dict[str, float] = json.loads(answer)
        return measured

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class Turns:
    """The contender's side: waits for its turn, and reports."""

    def __init__(self) -> None:
        # What libraries print must not reach the parent's protocol.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def wait(self) -> str:
        """The next task; ends the process when there is none."""
        task = sys.stdin.readline()
        if not task:
            os._exit(0)
        return task.strip()

    def report(self, measured: dict[str, float]) -> None:
        """Hand over a turn's figures."""
        self._answers.write(json.dumps(measured) + "\n")


def take_turns(measure: Callable[[str], dict[str, float]]) -> None:
    """Be a contender: answer every task with ``measure(task)``."""
    turns = Turns()
    while True:
        turns.report(measure(turns.wait()))


class PeakMemory:
    """The most memory this process had resident since ``start``, in MB (10^6 bytes), over what it had then."""

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self.before = _status("VmRSS")

    def extra_mb(self) -> float:
        return (_status("VmHWM") - self.before) / MEGABYTE


def peak_mb() -> float:
    """The most memory this process had resident, in MB."""
    return _status("VmHWM") / MEGABYTE


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def probe_gflops(repeats: int = 5) -> float:
    """fp32 product of two 1,024 x 1,024 matrices: the best of a few, in GFLOP/s."""
    import torch

    a = torch.randn(1024, 1024)
    return max(2 * 1024**3 / seconds_of(lambda: a @ a) / 1e9 for _ in range(repeats))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def print_machine(threads: int, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """State what the figures depend on."""
    import torch

    torch.set_num_threads(threads)
    versions = {name: version(name) for name in packages}
    machine = {
        "probe_gflops": round(probe_gflops()),
        "threads": threads,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": versions,
    }
    print(
        f"1024^3 fp32 product: {machine['probe_gflops']} GFLOP/s; {threads} thread(s) of {machine['cpus']} CPUs "
        f"({machine['cpu']}), load {machine['load']}\nPython {machine['python']}, "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}\n",
        flush=True,
    )
    return machine


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs: noise that lasts a round cancels."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown."""
    for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def write_json(path: Path | None, machine: dict[str, Any], measured: Any) -> None:
    """Keep the raw figures where asked."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine, "measured": measured}, indent=1))
