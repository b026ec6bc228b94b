"""Two processes train what one trains, and a killed pair continues bit for bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_batch_layout import fit

ROOT = Path(__file__).parents[2]


def start(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [
        {"batch_size": 8, "micro_batch_size": 2},
        {"batch_size": 8, "max_tokens_per_micro_batch": 120},
        {"batch_size": 2, "packing_length": 90, "micro_batch_size": 1},
    ],
    ids=["count", "tokens", "packed sequences"],
)
def test_two_processes_give_the_gradients_and_figures_of_one(
    cut: dict[str, int], tmp_path: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    """21 rows: the last step is smaller than what two processes x accumulation steps x sequences would take, and one
    process lays them out otherwise.
    """
    script = str(ROOT / "tests/integration/fit_two_processes.py")
    done = start(script, str(tmp_path / "two.pt"), json.dumps(cut), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    alone = {"layout": "padded"} | cut if "packing_length" not in cut else cut | {"micro_batch_size": 2}
    log, trainer = fit(make_llama(), tokenizer, unequal_rows(21), val_dataset=unequal_rows(5, seed=1), **alone)
    assert len(log.gradients) == len(two["gradients"]) >= 4
    for found, expected in zip(two["gradients"], log.gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    figures = {name: value.item() for name, value in trainer.trainer.callback_metrics.items()}
    assert figures.keys() >= {"train/loss", "val/loss", "val/perplexity", "val/token_accuracy"}
    assert two["figures"] == pytest.approx(figures, rel=1e-5)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_bit_for_bit_the_uninterrupted_run(tmp_path: Path) -> None:
    flags = ["--devices=2", "--strategy=ddp", "--accelerator=cpu", "--max_steps=8", "--batch_size=16"]
    flags += ["--micro_batch_size=4", "--checkpoint_every_n_steps=3", "--logger=none", "--lora_r=4"]
    flags += ["--lora_dropout=0.2"]
    kill = tmp_path / "kill.yaml"
    kill.write_text("callbacks:\n- class_path: killing.KillAt\n  init_args: {step: 5, micro_batch: 1}\n")
    script = str(ROOT / "run_sft.py")

    whole = start(script, *flags, "--output_dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    killed = start(script, *flags, "--output_dir=killed", f"--config={kill}", cwd=tmp_path)
    assert killed.returncode != 0
    resumed = start(script, *flags, "--output_dir=killed", "--resume=auto", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    def history(folder: str) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("throughput")} for row in rows]

    assert [row["step"] for row in history("whole")] == list(range(1, 9))
    assert history("killed") == history("whole")
    adapters = [(tmp_path / f / "model/adapter_model.safetensors").read_bytes() for f in ("whole", "killed")]
    assert adapters[0] == adapters[1]
    assert whole.stdout.count("Training data:") == 1, "only rank 0 speaks"
