"""Whole GRPO iterations of ReLax and of TRL's GRPOTrainer: where the seconds go, and peak memory.

    python benchmarks/grpo.py --quick

Needs TRL for its lines (``pip install -e '.[bench]'``), which are left out without it. Random Llama-shaped models in
fp32, 8 prompts x 8 completions: sampling, scoring, log-probs of the reference and of the sampling policy where they are
needed ("recall"), and the optimizer steps on them ("update"). A turn is one iteration. CPU seconds, and its parts, are
what a contender's process itself computed: neighbours on the machine do not enter, but for what they take from caches
and from a core's other thread. Where lengths vary, the completions of both end after 60 tokens on average.
``grpo_learning.py`` shows that both learn the same.
"""

import argparse
from importlib.util import find_spec
from statistics import median

import torch
from grpo_job import PARTS, Case
from side_by_side import (
    PACKAGES,
    Contender,
    benchmark_arguments,
    paired_ratio,
    print_machine,
    print_table,
    write_json,
)

ROUNDS, QUICK_ROUNDS = 7, 3
CASES = {
    "fixed": Case("tiny, 64 new"),
    "micro": Case("tiny, 64 new, micro-batches of 8", micro_batch=8),
    "kl": Case("tiny, 64 new, KL 0.04, 2 iterations", kl_coef=0.04, num_iterations=2),
    "varying": Case("tiny, up to 256 new, mean 60", new=256, varying=True),
    "small": Case("small, 64 new", size="small"),
    "small-varying": Case("small, up to 256 new, mean 60", size="small", new=256, varying=True),
}
TARGETS = {"fixed": "1.7", "kl": "1.7", "varying": "4", "small": "1.7", "small-varying": "4"}
DEFAULTS_IN, DEFAULTS_TARGET = ("fixed", "micro"), "2.5"
"""Cases that TRL as it comes takes part in."""

Turn = dict[str, float]


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES)
    parser.add_argument("--rounds", type=int, help=f"turns of each contender that are measured (default {ROUNDS})")
    options = parser.parse_args()
    if options.contender:
        from grpo_contenders import contend

        torch.set_num_threads(options.threads)
        name, case = options.contender.rsplit(": ", 1)
        contend(name, CASES[case])
    machine = print_machine(options.threads, (*PACKAGES, "trl") if find_spec("trl") else PACKAGES)
    everything = {}
    for case in options.cases:
        everything[case] = compare(case, options)
        report(case, everything[case])
    write_json(options.json, machine, everything)


def compare(case: str, options: argparse.Namespace) -> dict[str, list[Turn]]:
    from grpo_contenders import CONTENDERS, RELAX, TRL_AS_IT_COMES

    names = [name for name in CONTENDERS if name != TRL_AS_IT_COMES or case in DEFAULTS_IN]
    names = names if find_spec("trl") else [RELAX]
    contenders = [Contender(f"{name}: {case}", options.threads) for name in names]
    measured: dict[str, list[Turn]] = {name: [] for name in names}
    for contender in contenders:
        contender.measure("1")  # sets things up
    for _ in range(QUICK_ROUNDS if options.quick else options.rounds or ROUNDS):
        for name, contender in zip(names, contenders, strict=True):
            measured[name].append(contender.measure("1"))
    for contender in contenders:
        contender.stop()
    return measured


def report(case: str, measured: dict[str, list[Turn]]) -> None:
    figures = ["seconds", "cpu_seconds", *PARTS, "update"]
    rows = []
    for name, turns in measured.items():
        times = [f"{median(turn[figure] for turn in turns):.2f}" for figure in figures]
        sizes = [f"{median(turn[figure] for turn in turns):,.0f}" for figure in ("tokens", "longest")]
        rows.append([name, *times, *sizes, *(f"{turns[-1][figure]:,.0f}" for figure in ("peak_mb", "extra_mb"))])
    head = ["s", "CPU s", *PARTS, "update", "new tokens", "longest", "peak MB", "of it training"]
    print_table([CASES[case].title, *head], rows)
    if len(measured) > 1:
        report_ratios(case, measured)


def report_ratios(case: str, measured: dict[str, list[Turn]]) -> None:
    from grpo_contenders import RELAX, TRL_AS_IT_COMES

    ours, rows = measured[RELAX], []
    for name in list(measured)[1:]:
        theirs = measured[name]
        times = [paired_ratio([t[c] for t in theirs], [t[c] for t in ours]) for c in ("seconds", "cpu_seconds")]
        target = DEFAULTS_TARGET if name == TRL_AS_IT_COMES else TARGETS.get(case, "-")
        memory = [ours[-1][figure] / theirs[-1][figure] for figure in ("peak_mb", "extra_mb")]
        rows.append([f"{name} / {RELAX}", *(f"{x:.2f}" for x in times), target, *(f"{x:.2f}" for x in memory)])
    print_table([CASES[case].title, "seconds", "CPU seconds", "target", "our peak / theirs", "of training"], rows)


if __name__ == "__main__":
    main()
