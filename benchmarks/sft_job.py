"""What every contender of ``benchmarks/sft.py`` is given: the same fresh model, the same rows in the same order."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import PeakMemory, Turns, peak_mb
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from relax.data.batching.planning import Batching, Plan
from relax.data.tokens.tokenized import Sample, TokenizedDataset

BATCH_SIZE = 16
SEED = 0
LEARNING_RATE = 1e-4
LOG_EVERY = 10
MAX_LENGTH = 256
PACKED_BATCH_SIZE = BATCH_SIZE // 4  # sequences of 256 tokens hold about what 16 rows hold
HELD_OUT_ROWS = 32
HELD_OUT_LOSS = "held-out loss"  # the task that asks for it; any other is a number of steps
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

    def begin(self, held_out_loss: Callable[[], float]) -> None:
        """Wait for the first turn; call it right before training."""
        self.held_out_loss = held_out_loss
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
        while (task := self.turns.wait()) == HELD_OUT_LOSS:
            self.turns.report({"loss": self.held_out_loss()})
        self.left, self.tokens = int(task), 0
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
        """Log-normal lengths of mean 65, 95th percentile 147, at most 256; the first third is prompt.

        Tokens are drawn by Zipf's law, so there is something to learn: how often each one comes.
        """
        return self._draw(self.num_steps * BATCH_SIZE, SEED)

    def ordered_rows(self, group_by_length: bool = False) -> Iterator[Sample]:
        """The rows in the order in which ReLax takes them, 16 a step."""
        rows = self.rows()
        for step in self.plan(rows, group_by_length).steps(0):
            yield from (rows[i] for i in step.samples.tolist())

    def plan(self, rows: TokenizedDataset, group_by_length: bool = False) -> Plan:
        """Which rows make each optimizer step."""
        return Plan(rows, Batching(BATCH_SIZE, SEED, group_by_length))

    @torch.no_grad()
    def held_out_loss(self, model: LlamaForCausalLM) -> float:
        """Mean over the trained tokens of other rows, each by itself: the same figure whatever trained the model."""
        total, count, rows = 0.0, 0, self._draw(HELD_OUT_ROWS, SEED + 1)
        for sample in map(rows.__getitem__, range(HELD_OUT_ROWS)):
            ids = torch.from_numpy(sample.input_ids).long()
            targets = ids.masked_fill(~torch.from_numpy(sample.loss_mask), -100)[1:]
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            count += int(sample.loss_mask.sum())
        return total / count

    def _draw(self, count: int, seed: int) -> TokenizedDataset:
        rng = np.random.default_rng(seed)
        lengths = rng.lognormal(np.log(65) - 0.187, 0.612, count).round()
        ids = np.arange(3, MODELS[self.size]["vocab_size"])
        shares = 1 / ids / (1 / ids).sum()
        samples = []
        for length in lengths.clip(6, MAX_LENGTH).astype(int):
            trained = np.arange(length) >= round(length * PROMPT_SHARE)
            samples.append(Sample.of(rng.choice(ids, length, p=shares), trained))
        return TokenizedDataset.from_samples(samples)
