"""Tokenization: rows a second of ReLax and of TRL's SFTTrainer, from a JSONL file, without and with their caches.

    python benchmarks/tokenization.py --quick

Cold: nothing is cached. Warm: the same again in a new process, as at the second start of a run. Every measurement has a
process of its own; imports do not count. Both tokenize without threads (TOKENIZERS_PARALLELISM=false). TRL trains on
assistant turns only where the template marks them, so both are given a template with markers; ReLax is also measured on
the same template without them, where it finds the turns by itself.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from side_by_side import (
    PACKAGES,
    Contender,
    benchmark_arguments,
    paired_ratio,
    print_machine,
    print_table,
    write_json,
)

ROUNDS = 3
QUICK_ROUNDS = 1
QUICK_ROWS = 1000
Turn = dict[str, float]


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--shapes", nargs="+", default=["messages", "prompt_completion"], help="of rows")
    parser.add_argument("--only", nargs="+", help="contenders whose names hold one of these words")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        from tokenization_contenders import contend

        contend(options.contender, options.folder)
    if options.quick:
        options.rows = min(options.rows, QUICK_ROWS)
    packages = (*PACKAGES, "tokenizers", "datasets", *(["trl"] if find_spec("trl") else []))
    machine = print_machine(options.threads, packages)
    write_json(options.json, machine, {shape: compare(shape, options) for shape in options.shapes})


def chosen(shape: str, options: argparse.Namespace) -> list[str]:
    from tokenization_contenders import CONTENDERS

    names = [name for name in CONTENDERS if find_spec("trl") or not name.startswith("TRL")]
    names = [name for name in names if shape == "messages" or "template" not in name]
    return [name for name in names if not options.only or any(word in name for word in options.only)]


def compare(shape: str, options: argparse.Namespace) -> dict[str, dict[str, list[Turn]]]:
    from chat_rows import train_tokenizer, write_rows

    turns: dict[str, dict[str, list[Turn]]] = {name: {"cold": [], "warm": []} for name in chosen(shape, options)}
    with TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer().save_pretrained(folder)
        write_rows(folder / "rows.jsonl", options.rows, shape)
        size = (folder / "rows.jsonl").stat().st_size
        for _ in range(QUICK_ROUNDS if options.quick else ROUNDS):
            for contender, measured in turns.items():
                with TemporaryDirectory() as cache:
                    for start in measured:
                        measured[start].append(measure(contender, folder, cache, options.threads))
    report(f"{options.rows:,} rows of {shape}, {size / 1e6:.1f} MB", turns)
    return turns


def measure(name: str, folder: Path, cache: str, threads: int) -> Turn:
    contender = Contender(name, threads, [f"--folder={folder}"])
    try:
        return contender.measure(cache)
    finally:
        contender.stop()


def report(title: str, turns: dict[str, dict[str, list[Turn]]]) -> None:
    def middle(name: str, start: str, figure: str) -> float:
        return median(turn[figure] for turn in turns[name][start])

    rows = [
        [
            name,
            f"{middle(name, 'cold', 'rows') / middle(name, 'cold', 'seconds'):,.0f}",
            f"{middle(name, 'cold', 'seconds'):.2f}",
            f"{middle(name, 'cold', 'cpu_seconds'):.2f}",
            f"{middle(name, 'warm', 'seconds'):.2f}",
            f"{middle(name, 'cold', 'extra_mb'):,.0f}",
            f"{middle(name, 'cold', 'rows'):,.0f}",
            f"{middle(name, 'cold', 'tokens'):,.0f}",
            f"{middle(name, 'cold', 'trained'):,.0f}",
        ]
        for name in turns
    ]
    figures = [
        "rows/s cold",
        "seconds",
        "CPU seconds",
        "seconds warm",
        "extra peak MB",
        "rows kept",
        "tokens",
        "trained",
    ]
    print_table([title, *figures], rows)
    ratios = [
        [f"{ours} / {theirs}", *(f"{ratio(turns, ours, theirs, start):.1f}" for start in ("cold", "warm"))]
        for ours, theirs in pairs(list(turns))
    ]
    if ratios:
        print_table([title, "ratio of rows/s cold", "warm"], ratios)


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """ReLax and TRL with as many processes."""
    from tokenization_contenders import RELAX, RELAX_TWO, TRL, TRL_TWO

    return [(ours, theirs) for ours, theirs in ((RELAX, TRL), (RELAX_TWO, TRL_TWO)) if {ours, theirs} <= {*names}]


def ratio(turns: dict[str, dict[str, list[Turn]]], ours: str, theirs: str, start: str) -> float:
    """Of speeds, so the other way round of seconds."""

    def seconds(name: str) -> list[float]:
        return [turn["seconds"] for turn in turns[name][start]]

    return paired_ratio(seconds(theirs), seconds(ours))


if __name__ == "__main__":
    main()
