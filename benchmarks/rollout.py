"""Generated tokens per second: ReLax's rollout engine against ``model.generate``, plain sampling, fp32.

    python benchmarks/rollout.py --quick

Llama-shaped random models. tiny: 128 wide, 4 layers, vocabulary 2,048; small: 512 wide, 8 layers, vocabulary 8,192.
One turn of each contender after the other, with new noise every round; lengths vary because so many tokens are stop
tokens that a completion ends after 60 on average. The engine also keeps the log-probs, which ``generate`` does not.
"""

import argparse
from dataclasses import dataclass
from statistics import median

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
from transformers import LlamaConfig, LlamaForCausalLM

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


class Job:
    """One contender with one model."""

    def __init__(self, contender: str, size: str) -> None:
        torch.manual_seed(0)
        heads = {"num_attention_heads": 8 if size == "small" else 4, "num_key_value_heads": 4 if size == "small" else 2}
        config = LlamaConfig(**SIZES[size], **heads, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None)
        self.model = LlamaForCausalLM(config).eval()
        self.engines: dict[Task, PolicyEngine] = {}
        self.rounds, self.run = 0, self.engine if contender == ENGINE else self.generate

    def measure(self, task: str) -> dict[str, float]:
        self.rounds += 1
        settings, counted = TASKS[task], []
        torch.manual_seed(self.rounds)
        prompts = torch.randint(self.model.config.vocab_size, (settings.prompts, settings.prompt_tokens))
        seconds = seconds_of(lambda: counted.append(self.run(settings, prompts)))
        return {"seconds": seconds, "tokens": counted[0], "peak_mb": peak_mb()}

    def stop_ids(self, task: Task) -> list[int]:
        return [*range(round(self.model.config.vocab_size / MEAN_LENGTH))] if task.varying else []

    def engine(self, task: Task, prompts: torch.Tensor) -> int:
        if task not in self.engines:  # at the task's first turn, which does not count
            places = None if task.slots is None else task.slots * (task.prompt_tokens + task.new + SLACK_COLUMNS)
            self.engines[task] = PolicyEngine(self.model, memory=places)
        sampling = Sampling(max_new_tokens=task.new, stop_ids=tuple(self.stop_ids(task)))
        options = {"num_samples": task.samples, "sampling": sampling, "seed": self.rounds}
        return len(self.engines[task].generate(prompts.tolist(), **options).ids)

    def generate(self, task: Task, prompts: torch.Tensor) -> int:
        stops = torch.tensor(self.stop_ids(task))
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": task.new, "eos_token_id": stops.tolist() or None}
        tokens = 0
        for ids in prompts.repeat_interleave(task.samples, 0).split(task.slots or len(prompts) * task.samples):
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
            ended = torch.isin(out[:, task.prompt_tokens :], stops).cumsum(1)
            tokens += int((ended.cumsum(1) <= 1).sum())  # up to and with the first stop token
        return tokens


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
            for contender in contenders.values():  # whatever is set up at the first call
                contender.measure(task)
            turns = [{name: each.measure(task) for name, each in contenders.items()} for _ in range(rounds)]
            everything[f"{size} {task}"] = {name: [turn[name] for turn in turns] for name in contenders}
        for contender in contenders.values():
            contender.stop()
    report(everything, machine["probe_gflops"])
    write_json(options.json, machine, everything)


def report(everything: dict[str, dict[str, list[dict[str, float]]]], probe_gflops: float) -> None:
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
