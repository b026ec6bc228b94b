"""Tokens a second count real tokens after the warm-up; MFU follows from documented peaks."""

import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
from tiny_run import Tiny, data, fit
from torch import nn
from torch.utils.data import DataLoader

from callbacks import Throughput
from callbacks.throughput import PEAK_FLOPS, _peak_of, flops_per_token
from relax.memory import peak_memory_bytes


@dataclass(frozen=True)
class TokenBatch:
    x: torch.Tensor
    y: torch.Tensor
    num_tokens: int


class Tokens(Tiny):
    """Its first micro-batch has absurdly many tokens, the others 100; each takes 10 ms, a validation 300."""

    def train_dataloader(self) -> Any:
        batches = [TokenBatch(*data(), num_tokens=100 if i else 10**9) for i in range(self.batches)]
        return DataLoader(batches, batch_size=None)

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        return batch

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        time.sleep(0.01)
        return nn.functional.mse_loss(self.net(batch.x), batch.y)

    def validation_step(self, *_: Any) -> None:
        time.sleep(0.15)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_real_tokens_without_warm_up_and_validation(accumulate: int) -> None:
    meter = Throughput()
    module = fit(meter, module=Tokens(20, validates=True), max_epochs=1, accumulate_grad_batches=accumulate)
    logged = module.trainer.callback_metrics
    assert 1_000 < meter.tokens_per_second < 10_000  # the sleep alone makes 10,000; a validation included, 1,000
    assert 500 < float(logged["throughput/tokens_per_second"]) < 10_000
    assert 0.05 < float(logged["throughput/peak_memory_gb"]) < 100
    assert "throughput/mfu" not in logged


def test_a_validation_between_steps_costs_nothing() -> None:
    meter = Throughput()
    fit(meter, module=Tokens(12, validates=True), max_epochs=1, val_check_interval=2)  # 3.6 s for 1,100 tokens
    assert meter.tokens_per_second > 1_000


def test_batches_of_other_kinds_only_show_memory() -> None:
    meter = Throughput()
    logged = fit(meter, max_epochs=1).trainer.callback_metrics
    assert meter.tokens_per_second == 0
    assert "throughput/tokens_per_second" not in logged
    assert "throughput/peak_memory_gb" in logged


def test_it_is_logged_every_so_many_steps_over_all_tokens_of_them() -> None:
    rates: dict[int, float] = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if "throughput/tokens_per_second" in trainer.callback_metrics:
                rates.setdefault(trainer.global_step, float(trainer.callback_metrics["throughput/tokens_per_second"]))

    fit(Throughput(every_n_steps=4), Watch(), module=Tokens(9), max_epochs=1)
    assert min(rates) == 4
    assert rates[4] == rates[7] != rates[8] != rates[9]
    assert all(1_000 < rate < 10_000 for rate in rates.values())


def test_flops_of_full_and_of_low_rank_training() -> None:
    module = nn.Linear(10, 10, bias=False)
    assert flops_per_token(module) == 6 * 100
    module.requires_grad_(False)
    adapter = nn.Linear(10, 1, bias=False)
    assert flops_per_token(nn.ModuleList([module, adapter])) == 4 * 110 + 2 * 10


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA B200", "B200"),
    ],
)
def test_a_device_is_recognized_by_a_word_of_its_name(device: str, name: str) -> None:
    assert _peak_of(device) == PEAK_FLOPS[name]


@pytest.mark.parametrize("device", ["NVIDIA A10G", "Tesla T4", "AMD Instinct MI300X"])
def test_an_unknown_device_has_no_peak(device: str) -> None:
    assert _peak_of(device) is None


def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(max(before // 4, 1) + 50_000_000)  # fp32: beyond the peak so far
    assert peak_memory_bytes(torch.device("cpu")) > before
    del block
