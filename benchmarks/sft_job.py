"""What every contender of ``benchmarks/sft.py`` is given: the same fresh model, the same rows in the same order."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from side_by_side import PeakMemory, Turns, peak_mb
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from relax.data.batches import epoch_steps
from relax.data.tokenized import Sample, TokenizedDataset

BATCH_SIZE = 16
SEED = 0
LEARNING_RATE = 1e-4
LOG_EVERY = 10
MAX_LENGTH = 256
PROMPT_SHARE = 1 / 3
HEAD_SIZES = {"tiny": 32, "small": 64}
MODELS = {
    "tiny": {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4},
    "small": {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
}


class Steps:
    """Counts optimizer steps, and lets only as many pass at a time as the parent process asks for."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def begin(self) -> None:
        """Wait for the first turn; call it right before training."""
        self.memory = PeakMemory()
        self.memory.start()
        self._wait()

    def done(self, tokens: int) -> None:
        """An optimizer step over ``tokens`` real tokens is complete."""
        self.tokens += tokens
        self.left -= 1
        if self.left:
            return
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        memory = {"peak_mb": peak_mb(), "extra_mb": self.memory.extra_mb()}
        self.turns.report({"tokens": self.tokens, "seconds": wall, "cpu_seconds": cpu, **memory})
        self._wait()

    def _wait(self) -> None:
        self.left, self.tokens = int(self.turns.wait()), 0
        self.wall, self.cpu = time.perf_counter(), time.process_time()


@dataclass
class Job:
    """A model size, a number of optimizer steps, and whom to tell of each."""

    size: str
    num_steps: int
    steps: Steps

    def model(self) -> LlamaForCausalLM:
        """Fresh weights, the same for every contender."""
        torch.manual_seed(SEED)
        shape = MODELS[self.size]
        heads = {"num_attention_heads": shape["hidden_size"] // HEAD_SIZES[self.size]}
        ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
        return LlamaForCausalLM(LlamaConfig(**shape, **heads, **ids, max_position_embeddings=512)).train()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """What a trainer asks for; the rows are tokenized already."""
        from tokenizers import Tokenizer, models

        vocabulary = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "?": 2}, unk_token="?"))
        return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>")

    def rows(self) -> TokenizedDataset:
        """Random tokens; log-normal lengths of mean 65, 95th percentile 147, at most 256; the first third is prompt."""
        rng = np.random.default_rng(SEED)
        lengths = rng.lognormal(np.log(65) - 0.187, 0.612, self.num_steps * BATCH_SIZE).round()
        samples = []
        for length in lengths.clip(6, MAX_LENGTH).astype(int):
            trained = np.arange(length) >= round(length * PROMPT_SHARE)
            samples.append(Sample.of(rng.integers(3, MODELS[self.size]["vocab_size"], length), trained))
        return TokenizedDataset.from_samples(samples)

    def ordered_rows(self) -> Iterator[Sample]:
        """The rows in the order in which ReLax takes them."""
        rows = self.rows()
        for step in self.batches(rows):
            yield from (rows[i] for i in step.tolist())

    def batches(self, rows: TokenizedDataset) -> list[np.ndarray]:
        """The rows of each optimizer step."""
        return epoch_steps(rows.lengths, BATCH_SIZE, SEED, 0, group_by_length=False)
