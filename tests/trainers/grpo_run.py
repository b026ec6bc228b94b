"""Small runs of ``GRPOTrainer`` on a random policy, in fp64, with all that an oracle needs to retrace them."""

from typing import Any

import lightning as L
import torch
from conftest import build_llama
from torch import Tensor, nn

from relax.experience import Experience
from relax.tasks.sorting import Sorting
from trainers import GRPOTrainer

MAX_NEW_TOKENS = 12
STEPS = 4
"""Optimizer steps of an iteration: 2 passes of 2."""


def odd(completion: str) -> float:
    """1 or 0, by chance; now and then all completions of a prompt agree."""
    return float(sum(map(ord, completion)) % 2)


def policy(**changes: Any) -> Any:
    """Far from uniform, so that log-probs, lengths and entropies differ."""
    return build_llama(**{"initializer_range": 0.4, **changes})


def other_policy() -> Any:
    """A reference that is far from ``policy``."""
    model = policy()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def build(model: nn.Module | None = None, **settings: Any) -> GRPOTrainer:
    """8 prompts x 4 completions in 2 x 2 steps of 16; plain SGD, steps large enough to clip."""
    task = Sorting()
    return GRPOTrainer(policy() if model is None else model, task.build_tokenizer(), **{
        "train_dataset": task.prompt_rows(40), "rewards": [odd], "max_new_tokens": MAX_NEW_TOKENS,
        "batch_size": 16, "num_generations": 4, "steps_per_generation": 2, "num_iterations": 2, "max_steps": STEPS,
        "optimizer": "sgd", "betas": (0.0, 0.999), "learning_rate": 0.1, "schedule": "constant", "seed": 3,
        "precision": "64-true", "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        **settings,
    })  # fmt: skip


class Steps(L.Callback):
    """Of every optimizer step the weights that it starts from, its gradient (flat), its figures; every experience."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[Tensor] = []
        self.figures: list[dict[str, float]] = []
        self.experiences: list[Experience] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        trained = {name: p for name, p in pl_module.model.named_parameters() if p.requires_grad}
        self.weights.append({name: p.detach().clone() for name, p in trained.items()})
        self.gradients.append(flat([torch.zeros_like(p) if p.grad is None else p.grad for p in trained.values()]))
        if not self.experiences or self.experiences[-1] is not pl_module.experience:
            self.experiences.append(pl_module.experience)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.figures):
            self.figures.append({name.removeprefix("train/"): float(x) for name, x in trainer.callback_metrics.items()})


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).clone()


def train(model: nn.Module | None = None, **settings: Any) -> tuple[Steps, GRPOTrainer]:
    """A run, and what was seen of it."""
    steps = Steps()
    others = settings.pop("callbacks", [])
    trainer = build(model, callbacks=[*others, steps], **settings)
    return steps, trainer.train()
