"""What every contender of ``benchmarks/grpo.py`` is given: the same fresh model, prompts and reward; and its clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from side_by_side import PeakMemory, Turns, peak_mb
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 0
NUM_PROMPTS, NUM_GENERATIONS = 8, 8
COMPLETIONS = NUM_PROMPTS * NUM_GENERATIONS
PROMPT_TOKENS, MEAN_LENGTH = 26, 60
ROWS = 512
LEARNING_RATE = 1e-6
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
ENDLESS = 1_000_000
"""Optimizer steps: the parent process ends the run."""
PARTS = ("rollout", "scoring", "recall")
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 2048},
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "vocab_size": 8192},
}
HEADS = {
    "tiny": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "small": {"num_attention_heads": 8, "num_key_value_heads": 4},
}


@dataclass(frozen=True)
class Case:
    """One kind of iteration: 8 prompts x 8 completions, and ``num_iterations`` optimizer steps on them."""

    title: str
    size: str = "tiny"
    new: int = 64
    varying: bool = False
    """So many tokens are stop tokens that a completion ends after 60 on average; else none is."""
    kl_coef: float = 0.0
    num_iterations: int = 1
    micro_batch: int = COMPLETIONS

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a completion."""
        return [*range(round(SIZES[self.size]["vocab_size"] / MEAN_LENGTH))] if self.varying else []

    def model(self) -> LlamaForCausalLM:
        """Fresh weights, the same for every contender."""
        torch.manual_seed(SEED)
        ids = {"bos_token_id": None, "eos_token_id": self.stop_ids or None, "pad_token_id": 0}
        config = LlamaConfig(**SIZES[self.size], **HEADS[self.size], **ids, max_position_embeddings=1024)
        return LlamaForCausalLM(config).train()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token a word. Its end of text is no token of the model: completions of fixed length do not end early."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        size = SIZES[self.size]["vocab_size"]
        words = {"<pad>": 0, **{str(number): number for number in range(1, size)}, "<eos>": size}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="1"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")

    def rows(self) -> list[dict[str, str]]:
        """Prompts of 26 tokens."""
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(1, SIZES[self.size]["vocab_size"], (ROWS, PROMPT_TOKENS), generator=generator)
        return [{"prompt": " ".join(map(str, row))} for row in ids.tolist()]


def even_share(completions: list[str], **_: Any) -> list[float]:
    """A reward that is hardly ever the same for a whole group: the share of even numbers, and a bit for the first."""
    numbers = [[int(word) for word in text.split() if word.isdigit()] or [0] for text in completions]
    return [sum(n % 2 == 0 for n in words) / len(words) + words[0] * 1e-6 for words in numbers]


@dataclass
class Clock:
    """Counts iterations, says where their seconds went, and lets only as many pass at a time as the parent asks for."""

    turns: Turns
    optimizer_steps: int
    """Of an iteration."""
    lengths: list[int] = field(default_factory=list)
    """Of the completions of a turn."""

    def begin(self) -> None:
        """Wait for the first turn; call it right before training."""
        self.memory = PeakMemory()
        self.memory.start()
        self._wait()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is this part of the iteration, in CPU seconds; all the rest is the update."""
        start = time.process_time()
        yield
        self.parts[name] += time.process_time() - start

    def step_done(self) -> None:
        """An optimizer step is complete."""
        self.left -= 1
        if self.left:
            return
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        parts = self.parts | {"update": cpu - sum(self.parts.values())}
        memory = {"peak_mb": peak_mb(), "extra_mb": self.memory.extra_mb()}
        lengths = {"tokens": sum(self.lengths), "longest": max(self.lengths)}
        self.turns.report({"seconds": seconds, "cpu_seconds": cpu} | parts | memory | lengths)
        self._wait()

    def _wait(self) -> None:
        self.left = int(self.turns.wait()) * self.optimizer_steps
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.lengths.clear()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
