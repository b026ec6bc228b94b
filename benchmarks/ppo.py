"""Whole PPO updates of ReLax, of a loop written by hand, and of TRL 1.12: where the seconds go, and peak memory.

    python benchmarks/ppo.py --quick
    python benchmarks/ppo.py --trl_python=.venv-trl/bin/python

TRL 1.12 was the last with PPO and needs an environment of its own; without ``--trl_python`` its lines are left out:

    python -m venv .venv-trl
    .venv-trl/bin/pip install torch==2.13.0 transformers==5.23.0 'trl==1.12.*'   # torch for the CPU

Random Llama-shaped models in fp32: policy, critic, reference and reward model of equal size. 64 prompts with one
completion each; "score" is what the reward model, the reference and the critic make of them; "update" four optimizer
steps on all of them, each a whole epoch. A turn is one such iteration. CPU seconds, and their parts, are what a
contender's process itself computed: neighbours on the machine do not enter, but for what they take from caches and
from a core's other thread. Where lengths vary, completions end after 60 tokens on average. ``--check`` shows that
ReLax and the loop do the same work: the same completions move the same weights by as much. ``ppo_learning.py`` shows
that both learn the same.
"""

import argparse
import os
import sys
from statistics import median

import torch
from ppo_contenders import BY_HAND, CONTENDERS, RELAX, TRL, contend
from ppo_job import PHASES, PPOCase
from side_by_side import (
    Contender,
    benchmark_arguments,
    paired_ratio,
    print_machine,
    print_table,
    write_json,
)

ROUNDS, QUICK_ROUNDS = 5, 2
CASES = {
    "fixed": PPOCase("tiny, 64 new"),
    "micro": PPOCase("tiny, 64 new, micro-batches of 16", micro_batch=16),
    "varying": PPOCase("tiny, up to 256 new, mean 60", new=256, varying=True),
    "small": PPOCase("small, 64 new", size="small"),
}
DEFAULT_CASES = ("fixed", "varying")
TARGETS = {BY_HAND: "update 0.95, rollout 2", TRL: "whole 1.6, memory 0.5"}

Turn = dict[str, float]


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--cases", nargs="+", default=[*DEFAULT_CASES], choices=CASES)
    parser.add_argument("--only", nargs="+", default=[*CONTENDERS], choices=CONTENDERS, help="these contenders")
    parser.add_argument("--rounds", type=int, help=f"turns of each contender that are measured (default {ROUNDS})")
    parser.add_argument("--trl_python", help="the interpreter of the environment with TRL 1.12")
    parser.add_argument("--check", action="store_true", help="do ReLax and the loop make the same updates? no timing")
    options = parser.parse_args()
    if options.contender:
        be(options)
    if options.check:
        check(options)
        return
    machine = print_machine(options.threads)
    everything = {}
    for case in options.cases:
        everything[case] = compare(case, options)
        report(case, everything[case])
    write_json(options.json, machine, everything)


def be(options: argparse.Namespace) -> None:
    name, case = options.contender.rsplit(": ", 1)
    if name == TRL and sys.executable != options.trl_python:
        os.execv(options.trl_python, [options.trl_python, *sys.argv])  # the same process, so the same pipes
    torch.set_num_threads(options.threads)
    contend(name, CASES[case])


def check(options: argparse.Namespace) -> None:
    from ppo_same_update import differences

    torch.set_num_threads(options.threads)
    for case in options.cases:
        rows = [[name, f"{value:.1e}"] for name, value in differences(CASES[case]).items()]
        print_table([f"{CASES[case].title}: distance of ReLax from the loop, as a share of the loop's", ""], rows)


def compare(case: str, options: argparse.Namespace) -> dict[str, list[Turn]]:
    names = [name for name in options.only if options.trl_python or name != TRL]
    contenders = [Contender(f"{name}: {case}", options.threads) for name in names]
    measured: dict[str, list[Turn]] = {name: [] for name in names}
    for contender in contenders:
        contender.measure()  # sets things up
    for _ in range(QUICK_ROUNDS if options.quick else options.rounds or ROUNDS):
        for name, contender in zip(names, contenders, strict=True):
            measured[name].append(contender.measure())
    for contender in contenders:
        contender.stop()
    return measured


def report(case: str, measured: dict[str, list[Turn]]) -> None:
    figures = ["seconds", "cpu_seconds", *PHASES]
    rows = []
    for name, turns in measured.items():
        times = [f"{median(turn[figure] for turn in turns):.2f}" for figure in figures]
        sizes = [f"{median(turn[figure] for turn in turns):,.0f}" for figure in ("tokens", "longest")]
        rows.append([name, *times, *sizes, *(f"{turns[-1][figure]:,.0f}" for figure in ("peak_mb", "extra_mb"))])
    head = ["s", "CPU s", *PHASES, "new tokens", "longest", "peak MB", "of it training"]
    print_table([CASES[case].title, *head], rows)
    if RELAX in measured and len(measured) > 1:
        report_ratios(case, measured)


def report_ratios(case: str, measured: dict[str, list[Turn]]) -> None:
    ours, rows = measured[RELAX], []
    for name, theirs in measured.items():
        if name == RELAX:
            continue
        columns = ("seconds", "cpu_seconds", *PHASES)
        times = [paired_ratio([t[c] for t in theirs], [t[c] for t in ours]) for c in columns]
        memory = [ours[-1][figure] / theirs[-1][figure] for figure in ("peak_mb", "extra_mb")]
        ratios = [f"{x:.2f}" for x in (*times, *memory)]
        rows.append([f"{name} / {RELAX}", *ratios, TARGETS.get(name, "-")])
    head = ["seconds", "CPU seconds", *PHASES, "our peak / theirs", "of training", "target"]
    print_table([CASES[case].title, *head], rows)


if __name__ == "__main__":
    main()
