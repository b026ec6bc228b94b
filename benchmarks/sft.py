"""Supervised fine-tuning: tokens a second and peak memory of ReLax, of hand-written loops, and of TRL's SFTTrainer.

    python benchmarks/sft.py --quick

Needs TRL for its lines (``pip install -e '.[bench]'``), which are left out without it. Only real tokens count, not
padding. CPU seconds are what the contender's process itself computed: neighbours on the machine do not enter, but for
what they take from caches. The loss is that of the trained model on rows it has not seen, after as many steps for all:
it shows that they do the same work.
"""

import argparse
from importlib.util import find_spec
from statistics import median

import torch
from side_by_side import (
    PACKAGES,
    Contender,
    benchmark_arguments,
    paired_ratio,
    print_machine,
    print_table,
    write_json,
)

WARM_UP_STEPS = 3
STEPS_PER_TURN = {"tiny": 6, "small": 1}
ROUNDS = {"tiny": 12, "small": 8}
QUICK_ROUNDS = 3
PACKED, PADDED, PLAIN = "ReLax, packed", "ReLax, padded", "hand-written, padded, full logits"
GROUPED, BEST_FIT = "ReLax, padded, grouped", "ReLax, packed into 256 (best fit)"
# What is divided by what, and the ratio of tokens a second that was found reachable.
PAIRS = [
    (PACKED, "hand-written, ReLax's packed batches and loss", "0.97"),
    (PADDED, "hand-written, ReLax's padded batches and loss", "0.97"),
    (PACKED, PLAIN, "0.97"),
    (PADDED, PLAIN, "0.97"),
    (PADDED, "TRL, padded", "1.4"),
    (GROUPED, "TRL, padded, grouped", "-"),
    (PACKED, "TRL, padded", "2.3"),
    (PACKED, "TRL, padded, grouped", "-"),
    (PACKED, "TRL, padding-free", "1.3"),
    (PACKED, "TRL, packed (bfd)", "-"),
    (BEST_FIT, "TRL, packed (bfd)", "-"),
    (PACKED, "TRL as it comes (bf16, checkpointing), padded", "-"),
]

Turn = dict[str, float]


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=["tiny", "small"])
    parser.add_argument("--rounds", type=int, help=f"turns of each contender that are measured (default {ROUNDS})")
    parser.add_argument("--only", nargs="+", help="contenders whose names hold one of these words")
    options = parser.parse_args()
    if options.contender:
        from sft_contenders import contend

        torch.set_num_threads(options.threads)
        size = options.sizes[0]
        contend(options.contender, size, num_steps(size, rounds(size, options)))
    packages = (*PACKAGES, "trl") if find_spec("trl") else PACKAGES
    machine = print_machine(options.threads, packages)
    everything = {size: compare(size, chosen(options), options) for size in options.sizes}
    write_json(options.json, machine, everything)


def rounds(size: str, options: argparse.Namespace) -> int:
    return QUICK_ROUNDS if options.quick else options.rounds or ROUNDS[size]


def num_steps(size: str, num_rounds: int) -> int:
    """More than are measured: packing may make fewer steps of the rows, and a run must not end by itself."""
    return 4 + WARM_UP_STEPS + num_rounds * STEPS_PER_TURN[size]


def chosen(options: argparse.Namespace) -> list[str]:
    from sft_contenders import CONTENDERS

    names = [name for name in CONTENDERS if find_spec("trl") or not name.startswith("TRL")]
    return [name for name in names if not options.only or any(word in name for word in options.only)]


def compare(size: str, names: list[str], options: argparse.Namespace) -> dict[str, list[Turn]]:
    from sft_job import HELD_OUT_LOSS

    contenders = [Contender(name, options.threads, [f"--sizes={size}"]) for name in names]
    measured: dict[str, list[Turn]] = {name: [] for name in names}
    for contender in contenders:
        contender.measure(str(WARM_UP_STEPS))
    for _ in range(rounds(size, options)):
        for contender in contenders:
            measured[contender.name].append(contender.measure(str(STEPS_PER_TURN[size])))
    for contender in contenders:
        measured[contender.name][-1] |= contender.measure(HELD_OUT_LOSS)
        contender.stop()
    report(size, measured)
    return measured


def report(size: str, measured: dict[str, list[Turn]]) -> None:
    def rates(name: str, clock: str) -> list[float]:
        return [turn["tokens"] / turn[clock] for turn in measured[name]]

    rows = [
        [
            name,
            f"{median(rates(name, 'seconds')):,.0f}",
            f"{median(rates(name, 'cpu_seconds')):,.0f}",
            f"{1000 * median(t['cpu_seconds'] for t in turns) / STEPS_PER_TURN[size]:,.0f}",
            f"{turns[-1]['peak_mb']:,.0f}",
            f"{turns[-1]['extra_mb']:,.0f}",
            f"{turns[-1]['loss']:.3f}",
        ]
        for name, turns in measured.items()
    ]
    figures = ["tokens/s", "tokens/CPU second", "CPU ms a step", "peak MB", "of it training", "loss"]
    print_table([f"{size}, batch 16", *figures], rows)
    ratios = [
        [
            f"{ours} / {theirs}",
            f"{paired_ratio(rates(ours, 'seconds'), rates(theirs, 'seconds')):.2f}",
            f"{paired_ratio(rates(ours, 'cpu_seconds'), rates(theirs, 'cpu_seconds')):.2f}",
            target,
        ]
        for ours, theirs, target in PAIRS
        if ours in measured and theirs in measured
    ]
    print_table([size, "ratio of tokens/s", "of tokens/CPU second", "target"], ratios)


if __name__ == "__main__":
    main()
