"""Two processes write what one writes and learn what it learns; they resume bit for bit; none waits for a dead one."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from freshness import Freshness
from grpo_runs import KillWhileSampling, build, diary, fine, history, run, seven, state
from test_two_processes import ROOT, start
from torch.utils.data import DataLoader
from two_ranks import on_two_ranks, said

from callbacks import AdaptiveKL, NaNGuard
from relax.tasks.sorting import Sorting

TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp"}


class Record(L.Callback):
    """Every iteration's experience, and every step's gradient, KL coefficient and figures."""

    def __init__(self) -> None:
        self.experiences: list[Any] = []
        self.gradients: list[torch.Tensor] = []
        self.kl_coefs: list[float] = []
        self.figures: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        weights = [p for p in module.parameters() if p.requires_grad]
        none = torch.zeros(())
        self.gradients.append(torch.cat([(none.expand_as(p) if p.grad is None else p.grad).flatten() for p in weights]))
        self.kl_coefs.append(module.kl_coef)
        if not self.experiences or module.experience is not self.experiences[-1]:
            self.experiences.append(module.experience)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step > len(self.figures):
            known = trainer.callback_metrics.items()
            self.figures.append({name: float(value) for name, value in known if "second" not in name})

    def all(self, trainer: L.Trainer) -> dict[str, Any]:
        found = {"gradients": self.gradients, "figures": self.figures, "kl_coefs": self.kl_coefs}
        found["weights"] = [p.detach() for p in trainer.lightning_module.parameters()]
        return found | {"experiences": [experience.state() for experience in self.experiences]}


def fit(*callbacks: L.Callback, build: Callable[..., Any] = build, **settings: Any) -> dict[str, Any]:
    record = Record()
    module = build(record, *callbacks, precision="64-true", **settings).train()
    return record.all(module.trainer)


def check_same(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert len(two["gradients"]) == len(one["gradients"]) >= 3
    for found, expected in zip(two["experiences"], one["experiences"], strict=True):
        for name in ("prompts", "numbers", "num_samples"):
            assert found[name] == expected[name]
        torch.testing.assert_close(
            [found["ids"], found["lengths"], found["tokens"], found["completions"]],
            [expected["ids"], expected["lengths"], expected["tokens"], expected["completions"]],
            rtol=1e-9,
            atol=1e-12,
        )
    torch.testing.assert_close(two["gradients"], one["gradients"], rtol=1e-8, atol=1e-11)
    assert sum(bool(gradient.abs().max() > 1e-6) for gradient in one["gradients"]) >= 3
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-7, atol=1e-9)
    for found, expected in zip(two["figures"], one["figures"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert two["kl_coefs"] == pytest.approx(one["kl_coefs"], rel=1e-12)


CASES: dict[str, dict[str, Any]] = {
    "counts, KL, dynamic sampling": {"preset": "grpo", "kl_coef": 0.2, "dynamic_sampling": True, "micro_batch_size": 2},
    "tokens, LoRA, entropies": {
        **{"lora": True, "lora_dropout": 0.0, "top_p": 0.9, "top_entropy_share": 0.5, "kl_coef": 0.1, "max_steps": 6},
        **{"score": fine, "micro_batch_size": None, "max_tokens_per_micro_batch": 64, "max_prompt_length": 10},
    },
    "one group": {
        **{"batch_size": 4, "micro_batch_size": 2, "steps_per_generation": 1, "preset": "rloo", "max_steps": 6},
        **{"score": fine},
    },
    "three groups": {"batch_size": 12, "micro_batch_size": 6, "steps_per_generation": 1, "preset": "gspo"},
}


def run_case(name: str, *callbacks: L.Callback, **settings: Any) -> dict[str, Any]:
    adapting = [AdaptiveKL(target=0.05, horizon=40)] if "kl_coef" in CASES[name] else []
    return fit(*adapting, *callbacks, **CASES[name] | settings)


def check_two_processes(
    tmp_path: Path, cases: Iterable[str], run_case: Callable[..., dict[str, Any]], single: str
) -> Iterator[tuple[dict[str, Any], ...]]:
    """Two processes write and learn what one does; of each case what both of them found, and what one finds alone.

    ``single`` is the case with a prompt for one rank only.
    """

    def both(rank: int) -> None:
        found = {}
        for name in cases:
            seen = Freshness()
            found[name] = run_case(name, seen, **TWO)
            assert len(seen.checked) > 1 or name == single, "whose rollouts came from the latest weights"
        torch.save(found, tmp_path / f"found.{rank}")

    assert on_two_ranks(both, tmp_path) == [0, 0], said(tmp_path, 0)[-3000:] + said(tmp_path, 1)[-3000:]
    first, second = (torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in (0, 1))
    for name in cases:
        alone = run_case(name)
        check_same(first[name], alone)
        torch.testing.assert_close(second[name]["experiences"], first[name]["experiences"], rtol=0, atol=0)
        torch.testing.assert_close(second[name]["gradients"], first[name]["gradients"], rtol=0, atol=0)
        yield first[name], second[name], alone


def test_two_processes_write_and_learn_what_one_does(tmp_path: Path) -> None:
    assert len(list(check_two_processes(tmp_path, CASES, run_case, "one group"))) == len(CASES)


def fit_loader(rows: list[Any], batch_size: int, **settings: Any) -> dict[str, Any]:
    record = Record()
    more = {"score": fine, "devices": settings.get("devices", 1)}
    module = build(train_dataset=None, preset="grpo", kl_coef=0.2, **more)
    options = {"precision": "64-true", "accelerator": "cpu", "max_steps": 3, "logger": False, "callbacks": [record]}
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(**options, **quiet, **settings)
    trainer.fit(module, DataLoader(rows, batch_size=batch_size, collate_fn=list))
    return record.all(trainer)


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer of your own")
def test_a_loader_of_prompts_in_two_processes(tmp_path: Path) -> None:
    """Lightning shuffles the rows and deals them out; an update learns from the rows of both."""
    rows = Sorting().prompt_rows(12)

    def both(rank: int) -> None:
        found = fit_loader(rows, 2, **TWO)
        torch.save(found, tmp_path / f"found.{rank}")

    assert on_two_ranks(both, tmp_path) == [0, 0], said(tmp_path, 1)[-3000:]
    two = torch.load(tmp_path / "found.0", weights_only=True)
    write = Sorting().build_tokenizer().decode
    asked = [{"prompt": write(ids)} for experience in two["experiences"] for ids in experience["prompts"]]
    assert {row["prompt"] for row in asked} == {row["prompt"] for row in rows}
    check_same(two, fit_loader(asked, 4))


def test_two_processes_of_which_one_is_killed_resume_bit_for_bit(tmp_path: Path) -> None:
    def train(folder: str, rank: int, *kill: L.Callback, **more: Any) -> None:
        settings = {"dynamic_sampling": True, "lora": True, "preset": "grpo", "kl_coef": 0.2}
        run(tmp_path / folder, AdaptiveKL(target=0.05, horizon=40), *kill, **settings, **TWO, **more)

    kill = [[], [KillWhileSampling(iteration=1)]]
    assert on_two_ranks(lambda rank: train("whole", rank), tmp_path) == [0, 0], said(tmp_path, 0)[-3000:]
    codes = on_two_ranks(lambda rank: train("killed", rank, *kill[rank]), tmp_path)
    assert codes[1] == -9
    assert codes[0] not in (0, None), "the other one ends, too"
    assert on_two_ranks(lambda rank: train("killed", rank, resume="auto"), tmp_path) == [0, 0]
    for rank in (0, 1):
        assert diary(tmp_path / "killed", rank) == diary(tmp_path / "whole", rank)
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert state(tmp_path / "killed", 10) == state(tmp_path / "whole", 10)


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_reward_that_fails_in_one_process_ends_both(guilty: int, tmp_path: Path) -> None:
    def fail(rank: int) -> None:
        def score(completion: str) -> float:
            return float("nan") if rank == guilty else seven(completion)

        build(score=score, **TWO).train()

    started = time.monotonic()
    codes = on_two_ranks(fail, tmp_path)
    assert None not in codes
    assert 0 not in codes
    assert time.monotonic() - started < 60
    assert "RewardFailed: reward 'seven' returned nan; prompt '" in said(tmp_path, guilty)


@pytest.mark.slow
def test_ranks_that_lightning_started_end_both_and_say_why(tmp_path: Path) -> None:
    done = start(str(ROOT / "tests/integration/fail_on_one_rank.py"), cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert "RewardFailed: reward 'seven' returned nan; prompt '" in done.stderr


class Poisoned(L.Callback):
    """A token becomes no number when the policy reads it in training, on one rank, from the second step on."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 1:
            embedding = module.model.get_input_embeddings()
            embedding.register_forward_hook(lambda _, ids, out: out.masked_fill((ids[0] == 11)[..., None], torch.nan))


def test_completions_whose_loss_is_no_number_are_named(tmp_path: Path) -> None:
    def fail(rank: int) -> None:
        build(Poisoned(), NaNGuard(), layout="padded", **TWO).train()

    codes = on_two_ranks(fail, tmp_path)
    assert None not in codes
    assert 0 not in codes
    assert "NonFiniteLoss: stopped before step 2, epoch 0 on rank 1: the loss is nan" in said(tmp_path, 1)
