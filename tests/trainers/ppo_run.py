"""Small runs of ``RLTrainer`` on a random policy, in fp64, with all that an oracle needs to retrace them."""

from typing import Any

import lightning as L
import torch
from grpo_run import MAX_NEW_TOKENS, odd, policy
from torch import Tensor, nn

from relax.experience import Experience
from relax.lora import LoRASettings, add_lora
from relax.tasks.sorting import Sorting
from trainers import RLTrainer

LORA = LoRASettings(r=2, alpha=8)
STEPS = 4
"""Optimizer steps of an iteration: 2 epochs of 2 minibatches."""


def graded(completion: str) -> float:
    """Between -1 and 3.5, by chance."""
    return odd(completion) * 2 - 1 + len(completion) / 8


def harsh(completion: str) -> float:
    """Far below what a critic expects at first."""
    return graded(completion) - 8


def adapted() -> Any:
    """``policy`` with an adapter that has learned something."""
    model: Any = add_lora(policy(), LORA)
    randomize([p for p in model.parameters() if p.requires_grad], 0.1, seed=5)
    return model


@torch.no_grad()
def randomize(parameters: list[nn.Parameter], size: float, seed: int) -> None:
    """In place of what starts at 0, which hides errors."""
    generator = torch.Generator().manual_seed(seed)
    for weight in parameters:
        weight.add_(size * torch.randn(weight.shape, generator=generator).to(weight.dtype))


def build(model: nn.Module | None = None, **settings: Any) -> RLTrainer:
    """24 completions in 2 minibatches of 12, twice; plain SGD, steps large enough to clip ratios and values."""
    task = Sorting()
    trainer = RLTrainer(policy() if model is None else model, task.build_tokenizer(), **{
        "train_dataset": task.prompt_rows(40), "rewards": [graded], "max_new_tokens": MAX_NEW_TOKENS,
        "batch_size": 12, "num_generations": 1, "steps_per_generation": 2, "num_iterations": 2, "max_steps": STEPS,
        "optimizer": "sgd", "betas": (0.0, 0.999), "learning_rate": 0.1, "schedule": "constant", "seed": 3,
        "precision": "64-true", "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        **settings,
    })  # fmt: skip
    randomize(list(trainer.critic.learned()), 0.1, seed=6)
    return trainer


class Steps(L.Callback):
    """Of every optimizer step the weights that it starts from, its gradients, its figures; every experience."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.figures: list[dict[str, float]] = []
        self.experiences: list[Experience] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self.weights.append({name: p.detach().clone() for name, p in trained.items()})
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}
        self.gradients.append(gradients)
        if not self.experiences or self.experiences[-1] is not pl_module.experience:
            self.experiences.append(pl_module.experience)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.figures):
            self.figures.append({name.removeprefix("train/"): float(x) for name, x in trainer.callback_metrics.items()})


def train(model: nn.Module | None = None, **settings: Any) -> tuple[Steps, RLTrainer]:
    """A run, and what was seen of it."""
    steps = Steps()
    others = settings.pop("callbacks", [])
    trainer = build(model, callbacks=[*others, steps], **settings)
    return steps, trainer.train()
