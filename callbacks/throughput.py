"""How fast a run is: tokens a second, memory, and the share of the device's arithmetic that the model uses."""

import re
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import nn

from relax.errors import UserError
from relax.lightning_loop import step_completed, training_ends
from relax.memory import peak_memory_bytes
from relax.models import count_parameters
from relax.protocols import HasNumTokens
from relax.ranks import over_ranks

# bf16 tensor-core peak in FLOP/s, dense (half of what data sheets give "with sparsity"). Source: NVIDIA's data sheets
# (H200, H100, L40S, L4, A100, A40, A10) and architecture white papers (Blackwell, Ada and Ampere GeForce: fp32
# accumulation). The first name that is a word of the device's name counts.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H800": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


class Throughput(L.Callback):
    """Logs ``throughput/tokens_per_second``, ``throughput/peak_memory_gb`` and, where the peak is known, ``.../mfu``.

    Tokens are those of all ranks without padding, from batches that have ``num_tokens``; seconds are wall time since
    they were last logged, validation and evaluation left out. So is the first optimizer step of a process
    (compilation, warm-up).

    MFU (model FLOPs utilization, arXiv 2204.02311) counts, for N parameters, 2 N FLOPs a token forward, 2 N backward to
    the activations and 2 N_trainable to the weights: 6 N for full fine-tuning, about 4 N under LoRA. Attention and
    recomputed activations are not counted.

    Args:
        every_n_steps: log every so many optimizer steps, and the last.

    Attributes:
        tokens_per_second: mean over the run since its first optimizer step; 0 before there is one.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps of Throughput must be above 0, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.tokens_per_second = 0.0
        self._warm = False
        self._local_tokens = 0  # since the last logged step
        self._total_tokens, self._total_seconds = 0.0, 0.0
        self._since = self._paused = 0.0
        self._flops_per_token = 0
        self._peak: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        self._warm, self.tokens_per_second = False, 0.0
        self._local_tokens, self._total_tokens, self._total_seconds = 0, 0.0, 0.0
        self._flops_per_token, self._peak = flops_per_token(pl_module), peak_flops(pl_module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let it run again."""
        self._since += time.perf_counter() - self._paused

    def on_evaluation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, figures: Mapping[str, float], seconds: float
    ) -> None:
        """`Evaluate`'s hook: leave it out."""
        self._since += seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; at a logged optimizer step, log."""
        if isinstance(batch, HasNumTokens):
            self._local_tokens += batch.num_tokens
        if not step_completed(trainer):
            return
        if not self._warm:
            self._warm, self._local_tokens, self._since = True, 0, time.perf_counter()
        elif trainer.global_step % self.every_n_steps == 0 or training_ends(trainer):
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures = {"throughput/peak_memory_gb": peak_memory_bytes(pl_module.device) / 1e9}
        tokens = over_ranks(trainer, self._local_tokens, "sum")
        now = time.perf_counter()
        seconds, self._since, self._local_tokens = now - self._since, now, 0
        if tokens:
            self._total_tokens, self._total_seconds = self._total_tokens + tokens, self._total_seconds + seconds
            self.tokens_per_second = self._total_tokens / self._total_seconds
            figures["throughput/tokens_per_second"] = tokens / seconds
            if self._peak is not None:
                used = figures["throughput/tokens_per_second"] * self._flops_per_token
                figures["throughput/mfu"] = used / (self._peak * trainer.world_size)
        pl_module.log_dict(figures, on_step=True, on_epoch=False, rank_zero_only=True)


def flops_per_token(module: nn.Module) -> int:
    """4 N + 2 N_trainable: what a token costs forward and backward through N parameters."""
    total, trained = count_parameters(module)
    return 4 * total + 2 * trained


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s, or None where it is not known."""
    if device.type != "cuda":
        return None
    return _peak_of(torch.cuda.get_device_name(device))


def _peak_of(name: str) -> float | None:
    return next((flops for key, flops in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None)
