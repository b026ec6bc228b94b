"""What only a CUDA device can show: run these where one is at hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_batch_layout import fit
from test_resume import history, run, weights

import run_sft

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradients_on_the_gpu_are_those_of_the_cpu(
    layout: str, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    expected, _ = fit(make_llama(), tokenizer, unequal_rows(21), batch_size=8, layout="padded")
    found, _ = fit(
        make_llama(), tokenizer, unequal_rows(21), batch_size=8, layout=layout, micro_batch_size=4,
        accelerator="cuda", devices=1, compile_loss=True,
    )  # fmt: skip
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "32-true"])
def test_every_precision_trains(precision: str, make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    settings = {"accelerator": "cuda", "devices": 1, "precision": precision, "gradient_clip_val": 1.0}
    _, trainer = fit(make_llama(), tokenizer, unequal_rows(), batch_size=8, max_epochs=8, **settings)
    assert trainer.trainer.callback_metrics["train/loss"] < 2.6


def test_the_same_run_twice_is_bit_for_bit_the_same_with_deterministic_kernels(
    tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for folder in ("one", "two"):
        settings = {"accelerator": "cuda", "devices": 1, "deterministic": True}
        run(tmp_path / folder, make_llama(attention_dropout=0.2), tokenizer, unequal_rows(22), **settings)
    assert history(tmp_path / "two") == history(tmp_path / "one")
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def test_the_built_in_job_learns_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run_sft.cli(["--output_dir=run", "--logger=none", "--enable_progress_bar=false", "--precision=bf16-mixed"])
    figures = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert figures[-1]["train/loss"] < 0.2
    after = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Accuracy after"))
    assert 40 < float(after.split(": ")[1].split("%")[0]) < 60
