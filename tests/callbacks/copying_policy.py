"""A tiny language model that learns to copy a digit, as a LightningModule of ``model`` and ``tokenizer``."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from conftest import build_llama
from tiny_run import trainer
from torch import nn

from relax.tasks.sorting import Sorting

ROWS = [{"prompt": f"{digit}>", "answer": str(digit)} for digit in range(10)]


def copied(completion: str, answer: str) -> float:
    return float(completion == answer)


class Copies(L.LightningModule):
    """``5>`` -> ``5``; every batch holds all ten digits, so that it does not matter where a run resumes."""

    def __init__(self, batches: int = 6) -> None:
        super().__init__()
        self.model, self.tokenizer = build_llama(attention_dropout=0.1), Sorting().build_tokenizer()
        self.batches = batches
        self.losses: list[float] = []
        rows = self.tokenizer([row["prompt"] + row["answer"] for row in ROWS])["input_ids"]
        self.ids = torch.tensor([[*ids, self.tokenizer.eos_token_id] for ids in rows])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert self.model.training
        torch.manual_seed(self.global_step)  # of dropout
        logits = self.model(self.ids[:, :-1]).logits[:, 1:]  # the prompt is not learnt
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self.ids[:, 2:].flatten())
        self.losses.append(float(loss.detach()))
        self.log("train/loss", loss)
        return loss

    def on_train_start(self) -> None:
        self.model.train()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def train_dataloader(self) -> Any:
        return range(self.batches)


class Told(L.Callback):
    """What a callback that listens to `Evaluate` is told."""

    def __init__(self) -> None:
        self.figures: dict[int, dict[str, float]] = {}
        self.steps: list[int] = []

    def on_evaluation_end(self, trainer: L.Trainer, pl_module: Any, figures: dict[str, float], seconds: float) -> None:
        assert seconds > 0
        self.steps.append(trainer.global_step)
        self.figures[trainer.global_step] = figures


def fit(
    *callbacks: L.Callback, module: Copies | None = None, ckpt_path: Path | None = None, **arguments: Any
) -> tuple[Copies, Told]:
    """One run of 24 optimizer steps, and what `Evaluate` said in it."""
    module, told = module or Copies(), Told()
    trainer(*callbacks, told, **{"max_epochs": 4} | arguments).fit(module, ckpt_path=ckpt_path)
    return module, told
