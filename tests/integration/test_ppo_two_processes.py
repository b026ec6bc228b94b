"""Two processes of RLTrainer write, appraise and learn what one does, with each critic."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_run import STEPS, adapted, train
from two_ranks import on_two_ranks, said

TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
CASES: dict[str, dict[str, Any]] = {
    "separate, running scores": {"critic": "separate", "normalize_rewards": True, "max_steps": 2 * STEPS},
    "shared, masked": {"critic": "shared", "mask_truncated": True, "kl_in_loss": True, "entropy_coef": 0.01},
    "shared, warm-up": {"critic": "shared", "critic_warmup_steps": 3, "bootstrap_truncated": True},
    "adapter, warm-up, tokens": {
        **{"critic": "adapter", "critic_warmup_steps": 1, "micro_batch_size": None},
        **{"max_tokens_per_micro_batch": 60, "max_prompt_length": 10},
    },
    "separate, early stop": {"critic": "separate", "target_kl": 0.05, "max_steps": 2 * STEPS},
}
pytestmark = pytest.mark.filterwarnings("ignore:--kl_coef pulls towards the base model")


def run_case(name: str, **settings: Any) -> dict[str, Any]:
    """What was seen; callbacks see gradients before a step is called off."""
    case = {"micro_batch_size": 3} | CASES[name] | settings
    steps, module = train(adapted() if case["critic"] == "adapter" else None, **case)
    figures = [{name: x for name, x in step.items() if "second" not in name} for step in steps.figures]
    moments = [getattr(module._score_moments, part) for part in ("count", "mean", "squares")]
    return {
        "gradients": steps.gradients,
        "weights": steps.weights,
        "experiences": [(e.ids, e.tokens, e.completions) for e in steps.experiences],
        "figures": figures,
        "moments": moments,
    }


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    def both(rank: int) -> None:
        found = {name: run_case(name, **TWO) for name in CASES}
        torch.save(found, tmp_path / f"found.{rank}")

    assert on_two_ranks(both, tmp_path) == [0, 0], said(tmp_path, 0)[-3000:] + said(tmp_path, 1)[-3000:]
    first, second = (torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in (0, 1))
    for name in CASES:
        one = run_case(name)
        for part in ("experiences", "gradients", "weights"):
            assert len(first[name][part]) == len(one[part]) >= 1
            torch.testing.assert_close(first[name][part], one[part], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: n + m)
            torch.testing.assert_close(second[name][part], first[name][part], rtol=0, atol=0)
        for found, expected in zip(first[name]["figures"], one["figures"], strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        assert first[name]["moments"] == second[name]["moments"] == pytest.approx(one["moments"], rel=1e-12)
    assert first["separate, early stop"]["figures"][STEPS - 1]["epochs_done"] < 2
