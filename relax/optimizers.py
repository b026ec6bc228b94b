"""Optimizers by name, which weights decay, and learning-rate schedules as functions of the optimizer step."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from relax.errors import UserError

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


def _adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], fused: bool) -> Optimizer:
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def _adam(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], fused: bool) -> Optimizer:
    return torch.optim.Adam(groups, lr=lr, betas=betas, fused=fused)


def _sgd(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], fused: bool) -> Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=betas[0], fused=fused)


def _adafactor(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], fused: bool) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=lr)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": _adamw,  # arXiv 1711.05101
    "adam": _adam,  # arXiv 1412.6980
    "sgd": _sgd,  # momentum is the first beta
    "adafactor": _adafactor,  # arXiv 1804.04235
}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable weights of a module, as ``decay_groups``.

    Raises:
        UserError: nothing is trainable.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise UserError("nothing to train: no parameter of the model has requires_grad; unfreeze some or use --lora_r")
    return decay_groups(trainable, weight_decay)


def decay_groups(trainable: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Weights in two groups: matrices decay, vectors (biases, norms, DoRA magnitudes) do not."""
    decaying = [p for p in trainable if p.ndim >= 2]
    steady = [p for p in trainable if p.ndim < 2]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": steady, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str | OptimizerFactory,
    groups: list[dict[str, Any]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    fused: bool,
) -> Optimizer:
    """An optimizer of ``OPTIMIZERS`` by name, or what a user's callable makes of the parameter groups.

    ``learning_rate`` is that of the groups without ``lr``.

    Raises:
        UserError: a callable that gives no ``torch.optim.Optimizer``.
    """
    if isinstance(name, str):
        return OPTIMIZERS[name](groups, lr=learning_rate, betas=betas, fused=fused)
    for group in groups:
        group.setdefault("lr", learning_rate)
    optimizer = name(groups)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


# Each takes the share of the run that lies behind (after warm-up, 0 to 1) and the share of a stable schedule's decay.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, decay: 1.0,
    "linear": lambda progress, decay: 1.0 - progress,
    "cosine": lambda progress, decay: 0.5 * (1.0 + math.cos(math.pi * progress)),  # arXiv 1608.03983
    "wsd": lambda progress, decay: min(1.0, (1.0 - progress) / decay),  # warm-up, stable, decay: arXiv 2404.06395
}


def build_schedule(
    optimizer: Optimizer, name: str, *, total_steps: float, warmup_steps: int, min_ratio: float, decay_ratio: float
) -> LambdaLR:
    """Linear warm-up to the learning rate, then ``SCHEDULES[name]`` down to ``min_ratio`` of it.

    Args:
        total_steps: optimizer steps of the whole run; may be infinite for a constant schedule.
        warmup_steps: optimizer steps; the first of them already has a rate above 0.
        min_ratio: the last rate as a share of the highest.
        decay_ratio: share of the steps after warm-up in which ``wsd`` decays.
    """
    span = max(1.0, total_steps - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / span)
        return min_ratio + (1.0 - min_ratio) * SCHEDULES[name](progress, decay_ratio)

    return LambdaLR(optimizer, factor)


def total_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The 2-norm of all gradients together (a scalar)."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
