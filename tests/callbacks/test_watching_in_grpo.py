"""SampleLog and Evaluate beside real trainers: they see the policy as it is, and change nothing."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from copying_policy import Told

from callbacks import Checkpoint, Evaluate, MetricsFile, SampleLog
from relax.checkpoint_io import step_checkpoint
from relax.experience import Experience
from relax.models import load_model, load_tokenizer
from relax.tasks.grading import accuracy
from relax.tasks.sorting import Sorting
from trainers import GRPOTrainer, SFTTrainer

TASK = Sorting()
HELD_OUT = TASK.eval_rows(60)
RUN: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


def build(*callbacks: L.Callback, **settings: Any) -> GRPOTrainer:
    """From the policy that ships; an iteration has 2 optimizer steps."""
    model, tokenizer = load_model(str(TASK.policy_folder)), load_tokenizer(str(TASK.policy_folder))
    arguments: dict[str, Any] = {
        **{"train_dataset": TASK.prompt_rows(64), "rewards": TASK.rewards, "max_new_tokens": 9, "batch_size": 32},
        **{"num_generations": 4, "steps_per_generation": 2, "learning_rate": 1e-3, "schedule": "constant"},
    }
    return GRPOTrainer(model, tokenizer, callbacks=list(callbacks), **arguments | RUN | {"max_steps": 6} | settings)


class Experiences(L.Callback):
    """The experience of every optimizer step."""

    def __init__(self) -> None:
        self.of: dict[int, Experience] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.of[trainer.global_step] = pl_module.experience


def watchers(folder: Path) -> list[L.Callback]:
    evaluate = Evaluate(HELD_OUT, TASK.rewards, every_n_steps=2, num_samples=2, ks=(1, 2))
    saver = Checkpoint(folder, every_n_steps=1, keep=9, monitor="val/accuracy", mode="max")
    return [evaluate, SampleLog(folder, every_n_steps=2), MetricsFile(folder / "metrics.jsonl"), saver]


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = ("seconds", "tokens_per_second")
    return [{name: value for name, value in row.items() if not any(word in name for word in timed)} for row in rows]


def test_grpo_is_watched_as_it_is_and_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    told, experiences = Told(), Experiences()
    watched = build(told, experiences, *watchers(tmp_path / "whole"))
    before = accuracy(watched.model, watched.tokenizer, HELD_OUT, TASK.grade)
    watched.train()
    after = accuracy(watched.model, watched.tokenizer, HELD_OUT, TASK.grade)
    assert told.steps == [0, 2, 4, 6]
    assert (told.figures[0]["val/accuracy"], told.figures[6]["val/accuracy"]) == (before, after)
    assert 0.3 < before < 0.7

    shown = lines(tmp_path / "whole/samples.jsonl")
    assert [row["step"] for row in shown] == [step for step in (1, 2, 4, 6) for _ in range(4)]
    for row in shown:
        found = experiences.of[row["step"]]
        texts = [watched.tokenizer.decode(found.completion(i)) for i in range(len(found))]
        same = [i for i, text in enumerate(texts) if text == row["completion"]]
        prompts = {watched.tokenizer.decode(found.prompt(i)): i for i in same}
        at = prompts[row["prompt"]]
        assert row["score"] == found.completions["score"][at]
        assert row["advantage"] == pytest.approx(float(found.completions["advantage"][at]))

    alone = build(MetricsFile(tmp_path / "alone.jsonl"))
    alone.train()
    losses = [row["train/loss"] for row in lines(tmp_path / "alone.jsonl")]
    watched_rows = lines(tmp_path / "whole/metrics.jsonl")
    assert [row["train/loss"] for row in watched_rows if "train/loss" in row] == losses


def test_a_resumed_run_shows_and_evaluates_the_same(tmp_path: Path) -> None:
    told, again = Told(), Told()
    build(told, *watchers(tmp_path / "whole")).train()
    callbacks = watchers(tmp_path / "part")
    build(*watchers(tmp_path / "part"), max_steps=5).train()
    with pytest.warns(UserWarning, match="renamed"):
        build(again, *callbacks, resume=str(step_checkpoint(tmp_path / "part", 3))).train()
    assert again.figures == {step: told.figures[step] for step in (4, 6)}
    for name in ("samples.jsonl", "metrics.jsonl"):
        assert lines(tmp_path / "part" / name) == lines(tmp_path / "whole" / name)
    saver = callbacks[-1]
    assert isinstance(saver, Checkpoint)
    accuracies = {step: told.figures[step]["val/accuracy"] for step in (2, 4, 6)}
    assert saver.best_step == max(accuracies, key=lambda step: (accuracies[step], -step))


def test_supervised_training_can_be_evaluated_too() -> None:
    told = Told()
    model = TASK.build_model()
    evaluate = Evaluate(HELD_OUT, TASK.rewards, every_n_steps=60)
    trainer = SFTTrainer(
        model,
        TASK.build_tokenizer(),
        train_dataset=TASK.train_rows(2000),
        callbacks=[evaluate, told],
        **TASK.sft_settings | RUN | {"batch_size": 32, "max_steps": 120},
    )
    trainer.train()
    found = accuracy(trainer.model, trainer.tokenizer, HELD_OUT, TASK.grade)
    assert told.figures[0]["val/accuracy"] == 0.0
    assert told.figures[120]["val/accuracy"] == found
