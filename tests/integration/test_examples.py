"""The examples and the documentation's Python run as they stand, and the example of an own loss is right."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from relax.data.batching.batches import collate_padded

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/relax"))
from byte_tokenizers import CHATML, byte_tokenizer  # noqa: E402


def start(script: Path, folder: Path, *flags: str) -> str:
    """What the script prints, run in ``folder`` with the hub switched off."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *flags],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_sft_from_python(tmp_path: Path) -> None:
    printed = start(ROOT / "examples/sft_python_api.py", tmp_path)
    assert "checkpoints, config.yaml, data_audit.json, data_audit.txt, metrics.jsonl, model, run.json" in printed
    assert re.search(r"^52713> \d+$", printed, re.MULTILINE)
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "checkpoints/best.ckpt").exists()


@pytest.mark.slow
def test_own_callback(tmp_path: Path) -> None:
    printed = start(ROOT / "examples/own_callback.py", tmp_path)
    assert "step 25: 52713> " in printed
    steps = re.search(r"stopped after (\d+) of 189 steps", printed)
    assert steps is not None
    assert 80 < int(steps[1]) < 110, "80,000 tokens at 14 a row and 64 rows a step"


@pytest.mark.slow
def test_own_loss(tmp_path: Path) -> None:
    printed = start(ROOT / "examples/own_loss.py", tmp_path)
    plain, penalised = (float(value) for value in re.findall(r"entropy ([\d.]+) nats", printed))
    assert penalised > plain + 0.2


@pytest.mark.slow
def test_own_reward(tmp_path: Path) -> None:
    printed = start(ROOT / "examples/own_reward.py", tmp_path)
    assert "step 0: 51.0%" in printed
    assert re.search(r"stopped after \d+ steps", printed)


@pytest.mark.slow
def test_rlhf_pipeline(tmp_path: Path) -> None:
    """Each part leaves what the next one needs; at its own sizes the figures are those of docs/ppo.md."""
    printed = start(ROOT / "examples/rlhf_pipeline.py", tmp_path, "--quick", "--folder=all", "--picture=curves.png")
    assert re.search(r"\d+ pairs of different answers; the judge erred in \d+\.\d%", printed)
    assert re.search(r"^kl_coef=0.3: right .* after \d+ steps, .* at last; score ", printed, re.MULTILINE)
    for run in ("sft", "reward", "loose", "tight"):
        assert (tmp_path / "all" / run / "model/config.json").exists()
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "all/reward/model")
    assert judge.config.num_labels == 1
    rows = [json.loads(line) for line in (tmp_path / "all/loose/metrics.jsonl").read_text().splitlines()]
    assert {"train/reward", "train/reward_right", "train/explained_variance_mc"} <= rows[-1].keys() | rows[-2].keys()
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["data", "lora", "callbacks", "python", "rewards", "grpo", "ppo", "reward_models", "rollouts"]
)
def test_the_python_of_the_documentation_runs(page: str, tmp_path: Path, make_llama: Callable) -> None:
    """The blocks of a page, one after the other, where ``my-model``, ``rows.jsonl`` and an adapter lie."""
    tokenizer = byte_tokenizer(CHATML)
    base = make_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    base.save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    rows = [f'{{"prompt": "{a}+{b}=", "completion": "{a + b}"}}\n' for a in range(6) for b in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    if page == "lora":
        from relax.export import export_model
        from relax.lora import LoRASettings, add_lora

        export_model(add_lora(base, LoRASettings(2)), tokenizer, tmp_path / "runs/lora/model")
    text = (ROOT / f"docs/{page}.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(found))
    start(script, tmp_path)


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_own_loss_equals_its_plain_restatement(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    """Value and gradient in fp64, against logits that the model itself gives."""
    model, data = make_llama().double(), unequal_rows(6)
    cls = load_example("own_loss").ConfidencePenaltyTrainer
    trainer = cls(model, tokenizer, train_dataset=data, beta=0.3, accelerator="cpu", enable_progress_bar=False)
    batch = collate_padded([data[i] for i in range(6)])
    loss, figures = trainer.compute_loss(batch)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    logits = model(batch.input_ids).logits.flatten(0, 1)[batch.positions]
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    nll = F.cross_entropy(logits, batch.targets)
    expected = nll - 0.3 * entropy
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(figures["entropy"], entropy.detach(), rtol=1e-12, atol=0)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_own_loss_does_not_depend_on_the_layout(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    cls = load_example("own_loss").ConfidencePenaltyTrainer
    losses = []
    for settings in ({"layout": "packed"}, {"layout": "padded", "micro_batch_size": 2}):
        options: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 8} | settings
        model = make_llama().double()
        trainer = cls(model, tokenizer, train_dataset=unequal_rows(20), precision="64-true", max_epochs=2, **options)
        losses.append(float(trainer.train().trainer.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
