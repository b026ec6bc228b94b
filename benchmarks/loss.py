"""The chunked loss against full logits: peak extra memory and seconds of one forward and backward pass, fp32.

    python benchmarks/loss.py --quick

Hidden size 512, vocabulary 151,936 (Qwen's). Every variant gives the gradient of the mean cross-entropy with respect to
the hidden states and the head. Full logits need 7.5 GB at 4,096 tokens.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from side_by_side import (
    Contender,
    PeakMemory,
    benchmark_arguments,
    paired_ratio,
    print_machine,
    print_table,
    seconds_of,
    take_turns,
    write_json,
)
from torch import Tensor, nn

from relax.causal_lm import LanguageHead
from relax.losses import token_logprobs, weighted_logprob_sum

FULL = "full logits, F.cross_entropy"


def full_logits(hidden: Tensor, head: LanguageHead, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden), targets)


def gradient_in_forward(hidden: Tensor, head: LanguageHead, targets: Tensor) -> Tensor:
    weights = torch.full((len(targets),), 1 / len(targets))
    return -weighted_logprob_sum(hidden, head, targets, weights)[0]


def recomputed(hidden: Tensor, head: LanguageHead, targets: Tensor) -> Tensor:
    return -token_logprobs(hidden, head, targets).logprobs.mean()


VARIANTS: dict[str, Callable[[Tensor, LanguageHead, Tensor], Tensor]] = {
    FULL: full_logits,
    "weighted_logprob_sum": gradient_in_forward,
    "token_logprobs": recomputed,
}


class Job:
    """One variant on fixed inputs."""

    def __init__(self, variant: str, hidden_size: int, vocabulary: int) -> None:
        torch.manual_seed(0)
        self.loss = VARIANTS[variant]
        self.layer = nn.Linear(hidden_size, vocabulary, bias=False)
        self.head = LanguageHead(self.layer, 1.0, None)
        self.hidden_size, self.vocabulary = hidden_size, vocabulary
        self._run(16)  # whatever is set up at the first call

    def measure(self, task: str) -> dict[str, float]:
        peak = PeakMemory()
        tokens = int(task)
        hidden, targets = self._inputs(tokens)
        peak.start()
        cpu = time.process_time()
        seconds = seconds_of(lambda: self._step(hidden, targets))
        cpu_seconds = time.process_time() - cpu
        extra = peak.extra_mb()
        assert self.layer.weight.grad is not None
        gradient = float(self.layer.weight.grad.norm())
        self.layer.weight.grad = None
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_mb": extra, "gradient_norm": gradient}

    def _run(self, tokens: int) -> None:
        self._step(*self._inputs(tokens))
        self.layer.weight.grad = None

    def _inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(tokens)
        hidden = torch.randn(tokens, self.hidden_size, requires_grad=True)
        return hidden, torch.randint(self.vocabulary, (tokens,))

    def _step(self, hidden: Tensor, targets: Tensor) -> None:
        torch.autograd.backward(self.loss(hidden, self.head, targets))


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.contender:
        torch.set_num_threads(options.threads)
        take_turns(Job(options.contender, options.hidden_size, options.vocabulary).measure)
    compare(options)


def compare(options: argparse.Namespace) -> None:
    machine = print_machine(options.threads)
    sizes, rounds = ([options.tokens[0]], 1) if options.quick else (options.tokens, options.rounds)
    everything = {}
    for tokens in sizes:
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
        contenders = [Contender(name, options.threads) for name in VARIANTS]
        for _ in range(rounds):
            for contender in contenders:
                measured[contender.name].append(contender.measure(str(tokens)))
        for contender in contenders:
            contender.stop()
        everything[tokens] = measured
        report(tokens, measured)
    write_json(options.json, machine, everything)


def report(tokens: int, measured: dict[str, list[dict[str, float]]]) -> None:
    def column(name: str, figure: str) -> list[float]:
        return [turn[figure] for turn in measured[name]]

    rows = [
        [
            name,
            f"{median(column(name, 'extra_mb')):,.0f}",
            f"1/{paired_ratio(column(FULL, 'extra_mb'), column(name, 'extra_mb')):.1f}",
            f"{median(column(name, 'seconds')):.2f}",
            f"{median(column(name, 'cpu_seconds')):.2f}",
            f"{paired_ratio(column(name, 'cpu_seconds'), column(FULL, 'cpu_seconds')):.2f}",
        ]
        for name in measured
    ]
    print_table([f"{tokens:,} tokens", "extra peak MB", "of full", "seconds", "CPU seconds", "of full"], rows)
    norms = {name: column(name, "gradient_norm")[0] for name in measured}
    worst = max(abs(norm / norms[FULL] - 1) for norm in norms.values())
    if worst > 1e-4:
        sys.exit(f"the gradients differ: {norms}")


if __name__ == "__main__":
    main()
