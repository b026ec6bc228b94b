"""Generated tokens per second: ReLax's rollout engine against ``model.generate``, plain sampling, fp32.

    python benchmarks/rollout.py --quick

Llama-shaped random models. tiny: 128 wide, 4 layers, vocabulary 2,048; small: 512 wide, 8 layers, vocabulary 8,192.
One turn of each contender after the other, with new noise every round. Where lengths vary, so many tokens are stop
tokens that a completion ends after 60 on average; ``generate`` then writes completions as long as the engine's of that
round, or luck with the longest one would decide. The engine also keeps the log-probs, which ``generate`` does not.

"of the matrix limit": the engine's tokens per second as a share of what the machine's fp32 matrix products would allow
if generated tokens cost nothing else: 2 operations a weight and token, and no prompts.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from side_by_side import (
    Contender,
    benchmark_arguments,
    paired_ratio,
    peak_mb,
    print_machine,
    print_table,
    seconds_of,
    take_turns,
    write_json,
)
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria

from relax.rollout import PolicyEngine, Sampling
from relax.rollout.memory import SLACK_COLUMNS

GENERATE, ENGINE = "generate", "engine"
MEAN_LENGTH = 60
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 2048},
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "vocab_size": 8192},
}


@dataclass(frozen=True)
class Task:
    """What is generated: ``prompts`` x ``samples`` completions."""

    title: str
    new: int
    varying: bool = False
    prompts: int = 8
    samples: int = 8
    prompt_tokens: int = 26
    slots: int | None = None
    """Rows that the engine may decode at one time; generate gets batches of as many."""


TASKS = {
    "fixed": Task("64 rows, 64 new", new=64),
    "varying": Task("64 rows, up to 256 new", new=256, varying=True),
    "queued": Task("512 rows queued for 64 places, up to 256 new", new=256, varying=True, prompts=64, slots=64),
    "shared": Task("64 rows, prompts of 400, 1 new", new=1, prompt_tokens=400),
}


class EndAt(StoppingCriteria):
    """Rows end after a given number of tokens each."""

    def __init__(self, prompt_tokens: int, lengths: torch.Tensor) -> None:
        self.ends = prompt_tokens + lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


class Job:
    """One contender with one model."""

    def __init__(self, contender: str, size: str) -> None:
        torch.manual_seed(0)
        heads = {"num_attention_heads": 8 if size == "small" else 4, "num_key_value_heads": 4 if size == "small" else 2}
        config = LlamaConfig(**SIZES[size], **heads, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None)
        self.model = LlamaForCausalLM(config).eval()
        self.engines: dict[Task, PolicyEngine] = {}
        self.rounds, self.is_engine = 0, contender == ENGINE

    def measure(self, order: str) -> dict[str, Any]:
        """``order``: the task, and for ``generate`` the length of each completion."""
        self.rounds += 1
        name, *lengths = order.split()
        task = TASKS[name]
        torch.manual_seed(self.rounds)
        prompts = torch.randint(self.model.config.vocab_size, (task.prompts, task.prompt_tokens))
        measured: dict[str, Any] = {"lengths": [int(length) for length in lengths]}
        if self.is_engine:
            engine = self.engine(task)
            seconds = seconds_of(lambda: measured.update(lengths=self.roll_out(engine, task, prompts)))
        else:
            seconds = seconds_of(lambda: self.generate(task, prompts, measured["lengths"]))
        return measured | {"seconds": seconds, "tokens": sum(measured["lengths"]), "peak_mb": peak_mb()}

    def engine(self, task: Task) -> PolicyEngine:
        if task not in self.engines:
            places = None if task.slots is None else task.slots * (task.prompt_tokens + task.new + SLACK_COLUMNS)
            self.engines[task] = PolicyEngine(self.model, memory=places)
        return self.engines[task]

    def roll_out(self, engine: PolicyEngine, task: Task, prompts: torch.Tensor) -> list[int]:
        num_stops = round(self.model.config.vocab_size / MEAN_LENGTH) if task.varying else 0
        sampling = Sampling(max_new_tokens=task.new, stop_ids=(*range(num_stops),))
        found = engine.generate(prompts.tolist(), num_samples=task.samples, sampling=sampling, seed=self.rounds)
        return found.lengths.tolist()

    def generate(self, task: Task, prompts: torch.Tensor, lengths: Sequence[int]) -> None:
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": task.new, "eos_token_id": None, "pad_token_id": 0}
        rows, size = prompts.repeat_interleave(task.samples, 0), task.slots or len(lengths)
        for ids, ends in zip(rows.split(size), torch.tensor(lengths).split(size), strict=True):
            ends_at = [EndAt(task.prompt_tokens, ends)]
            self.model.generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=ends_at, **options)


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.contender:
        torch.set_num_threads(options.threads)
        contender, size = options.contender.split()
        take_turns(Job(contender, size).measure)
    compare(options)


def compare(options: argparse.Namespace) -> None:
    machine = print_machine(options.threads)
    sizes, rounds = (options.sizes[:1], 2) if options.quick else (options.sizes, options.rounds)
    everything = {}
    for size in sizes:
        contenders = {name: Contender(f"{name} {size}", options.threads) for name in (GENERATE, ENGINE)}
        for task in options.tasks:
            turns = [take_a_turn(contenders, task) for _ in range(rounds + 1)][1:]  # the first sets things up
            everything[f"{size} {task}"] = {name: [turn[name] for turn in turns] for name in contenders}
        for contender in contenders.values():
            contender.stop()
    report(everything, machine["probe_gflops"])
    write_json(options.json, machine, everything)


def take_a_turn(contenders: dict[str, Contender], task: str) -> dict[str, dict[str, Any]]:
    engine = contenders[ENGINE].measure(task)
    lengths = " ".join(str(length) for length in engine["lengths"])
    return {GENERATE: contenders[GENERATE].measure(f"{task} {lengths}"), ENGINE: engine}


def report(everything: dict[str, dict[str, list[dict[str, Any]]]], probe_gflops: float) -> None:
    rows = []
    for name, measured in everything.items():
        size, task = name.split()
        speeds = {who: [turn["tokens"] / turn["seconds"] for turn in turns] for who, turns in measured.items()}
        share = median(speeds[ENGINE]) / (probe_gflops * 1e9 / (2 * matrix_weights(size)))
        row = [f"{size}: {TASKS[task].title}", *(f"{median(speeds[who]):,.0f}" for who in (GENERATE, ENGINE))]
        row += [f"{paired_ratio(speeds[ENGINE], speeds[GENERATE]):.2f}", f"{share:.0%}"]
        rows.append(
            [*row, " / ".join(f"{max(t['peak_mb'] for t in measured[who]):,.0f}" for who in (GENERATE, ENGINE))]
        )
    print_table(("", "generate, tokens/s", "engine, tokens/s", "ratio", "of the matrix limit", "peak MB"), rows)


def matrix_weights(size: str) -> int:
    """Weights that every generated token is multiplied with; twice as many operations are the arithmetic limit."""
    hidden, inner, layers, vocabulary = SIZES[size].values()
    return layers * (3 * hidden * hidden + 3 * hidden * inner) + hidden * vocabulary


if __name__ == "__main__":
    main()
