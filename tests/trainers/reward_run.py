"""Small runs of ``RewardTrainer`` on random pairs, in fp64, with what an oracle needs to retrace them."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from relax.data.pairs import PairDataset
from relax.data.tokens.tokenized import Sample, TokenizedDataset
from relax.tasks.sorting import Sorting, draw_prompts, lazy_solution, solution
from trainers import RewardTrainer


def scorer(**changes: Any) -> Any:
    """A classifier whose scores differ."""
    options = {"vocab_size": 14, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_labels": 1}
    options |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    options |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.4}
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**(options | changes))).eval()


def random_pairs(count: int = 21, longest: int = 60, seed: int = 0) -> PairDataset:
    """Random tokens with random margins; the two of a pair of very unequal length."""
    rng = np.random.default_rng(seed)
    lengths = [longest, *(int(rng.integers(1, 1 + 2 ** rng.integers(1, 6))) for _ in range(2 * count - 1))]
    samples = [Sample.of(rng.integers(2, 14, length), [False] * length) for length in lengths]
    tokenized = TokenizedDataset.from_samples(samples, np.repeat(np.arange(count), 2).tolist())
    return PairDataset(tokenized, rng.uniform(0, 2, count).astype(np.float32))


def sorting_pairs(count: int, *, held_out: bool = False, seed: int = 0) -> list[dict[str, str]]:
    """The right answer against a lazy one."""
    rng = random.Random(seed)
    prompts = (p for p in draw_prompts(rng, held_out) if lazy_solution(p) != solution(p))
    found = (next(prompts) for _ in range(count))
    return [{"prompt": p, "chosen": solution(p), "rejected": lazy_solution(p)} for p in found]


class Gradients(L.Callback):
    """The gradient of every optimizer step, flat."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        learned = [p.grad.flatten() for p in module.model.parameters() if p.grad is not None]
        self.seen.append(torch.cat(learned).clone())


def fit(pairs: Any = None, model: Any = None, **settings: Any) -> tuple[list[torch.Tensor], RewardTrainer]:
    """The gradients of a run, and its trainer."""
    log = Gradients()
    options = {"max_epochs": 2, "batch_size": 8, "precision": "64-true", "learning_rate": 1e-2}
    options |= {"accelerator": "cpu", "enable_progress_bar": False, "data_cache": None}
    callbacks = [log, *settings.pop("callbacks", [])]
    pairs = random_pairs() if pairs is None else pairs
    trainer = RewardTrainer(scorer() if model is None else model, Sorting().build_tokenizer(), **{
        "train_dataset": pairs, "callbacks": callbacks, **options, **settings,
    })  # fmt: skip
    return log.seen, trainer.train()


def figures(trainer: RewardTrainer) -> dict[str, float]:
    """What was logged last."""
    return {name: float(value) for name, value in trainer.trainer.callback_metrics.items()}


def exported(trainer: RewardTrainer, folder: Path) -> str:
    """Where it was written."""
    trainer.export(folder)
    return str(folder)
