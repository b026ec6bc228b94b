"""What the policy writes is shown as it is, in the terminal, in the file and in the logger's table."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from copying_policy import Copies
from lightning.pytorch.loggers.logger import DummyLogger
from tiny_run import Tiny, trainer

from callbacks import Checkpoint, SampleLog
from callbacks.sample_log import TABLE_ROWS
from relax.checkpoint_io import step_checkpoint
from relax.errors import UserError
from relax.experience import Experience
from relax.sample_table import sample_rows, spread

SCORES = [0.5, 1.0, 0.0, 0.25, 1.0, 0.75]


class Writes(Copies):
    """Two prompts, three completions of each; what they score depends on the iteration."""

    experience: Experience | None = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.experience is None or batch_idx == 0:
            self.experience = experience(self.current_epoch)


def experience(iteration: int = 0) -> Experience:
    """Completion ``i`` is ``i + 1`` times the digit ``i``, then the end of text but for the last one."""
    completions = [[4 + i] * (i + 1) + [1] * (i < 5) for i in range(6)]
    lengths = torch.tensor([len(ids) for ids in completions])
    score = torch.tensor(SCORES).roll(iteration)
    columns = {
        "advantage": score - 0.5,
        "truncated": torch.tensor([False] * 5 + [True]),
        "score": score,
        "reward/exact": score * 2,
        "reward/rare": torch.where(score > 0.6, score, math.nan),
    }
    ids = torch.tensor([token for ids in completions for token in ids])
    return Experience([[4, 5, 3], [13, 3]], [0, 1], 3, ids, lengths, {}, columns)


class Tables(DummyLogger):
    """A logger that keeps tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[dict[str, Any]]] = []

    def keep_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        assert name == "samples"
        self.tables.append(rows)


def fit(*callbacks: L.Callback, ckpt_path: Path | None = None, **arguments: Any) -> L.Trainer:
    """24 optimizer steps in 4 iterations."""
    run = trainer(*callbacks, **{"max_epochs": 4} | arguments)
    run.fit(Writes(), ckpt_path=ckpt_path)
    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_spread_has_the_best_the_worst_and_some_between() -> None:
    chosen = [spread(SCORES, count, seed=0, step=3) for count in range(1, 8)]
    assert [[SCORES[i] for i in picked] for picked in chosen[:4]] == [
        [1.0],
        [1.0, 0.0],
        [1.0, 0.75, 0.0],
        [1.0, 0.75, 0.5, 0.0],
    ]
    assert all(sorted(picked) == list(range(6)) for picked in chosen[5:])
    assert len({spread(SCORES, 1, seed=0, step=step)[0] for step in range(20)}) == 2  # equals take turns
    assert spread(SCORES, 3, seed=0, step=3) == chosen[2]


def test_rows_say_all_there_is(tokenizer: Any) -> None:
    first, last = sample_rows(experience(), [0, 5], tokenizer, step=7)
    assert list(first) == [
        "step",
        "prompt",
        "completion",
        "score",
        "reward/exact",
        "reward/rare",
        "advantage",
        "tokens",
        "truncated",
    ]
    assert first == {"step": 7, "prompt": "01>", "completion": "0<eos>", "score": 0.5, "reward/exact": 1.0} | {
        "reward/rare": None, "advantage": 0.0, "tokens": 2, "truncated": False
    }  # fmt: skip
    assert (last["prompt"], last["completion"], last["tokens"], last["truncated"]) == ("9>", "555555", 6, True)


def test_the_file_has_every_due_step(tmp_path: Path) -> None:
    fit(SampleLog(tmp_path, every_n_steps=7, num_samples=2))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 1, 7, 7, 14, 14, 21, 21]
    assert [row["score"] for row in found] == [1.0, 0.0] * 4
    worst = [row["completion"][0] for row in found[1::2]]
    assert worst == ["2", "3", "4", "5"]  # each of its own iteration


def test_accumulated_micro_batches_are_one_step(tmp_path: Path) -> None:
    fit(SampleLog(tmp_path, every_n_steps=5, num_samples=1), accumulate_grad_batches=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 5, 10]


def test_the_terminal_shows_text_and_obeys_none(capsys: pytest.CaptureFixture[str]) -> None:
    class Escapes(Writes):
        def __init__(self) -> None:
            super().__init__()
            decode = self.tokenizer.decode
            self.tokenizer.decode = lambda ids, **options: f"[red]\x1b[2J\n{decode(ids, **options) * 200}"

    trainer(SampleLog(num_samples=3), max_steps=1).fit(Escapes())
    shown = capsys.readouterr().out
    assert "step 1: 3 of 6 completions, best first" in shown
    together = shown.replace("\n", "").replace(" ", "")
    for word in ("[red]\\x1b", "[2J\\n", "characters", "exact", "rare", "advantage", "tokens"):
        assert word in together, word
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_one_reward_is_not_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    class One(Writes):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            self.experience.completions.pop("reward/rare", None)

    trainer(SampleLog(), max_steps=1).fit(One())
    shown = capsys.readouterr().out
    assert "score" in shown
    assert "exact" not in shown


def test_a_terminal_that_cannot_write_everything_is_no_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    fit(SampleLog(num_samples=1), max_steps=1)
    out.flush()
    assert b"best first" in out.buffer.getvalue()


def test_loggers_keep_the_latest_as_a_table(tmp_path: Path) -> None:
    logger = Tables()
    fit(SampleLog(tmp_path, every_n_steps=1, num_samples=6), logger=logger, max_epochs=8)
    assert [len(table) for table in logger.tables] == [min(6 * step, TABLE_ROWS) for step in range(1, 49)]
    assert logger.tables[-1] == rows(tmp_path)[-TABLE_ROWS:]


@pytest.mark.parametrize("from_step", [8, 12])
def test_a_resumed_run_leaves_the_file_and_the_table_of_the_uninterrupted_one(tmp_path: Path, from_step: int) -> None:
    whole, killed, logger = tmp_path / "whole", tmp_path / "killed", Tables()
    fit(SampleLog(whole, every_n_steps=3), logger=logger)
    fit(SampleLog(killed, every_n_steps=3), Checkpoint(killed, every_n_steps=4, keep=9), max_steps=16)
    with (killed / "samples.jsonl").open("a") as file:
        file.write('{"step": 18, "promp')  # a line that the kill cut
    again = Tables()
    with pytest.warns(UserWarning, match="set|renamed"):
        fit(
            SampleLog(killed, every_n_steps=3),
            Checkpoint(killed, keep=9),
            ckpt_path=step_checkpoint(killed, from_step),
            logger=again,
        )
    assert rows(killed) == rows(whole)
    assert again.tables[-1] == logger.tables[-1]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(SampleLog(), max_steps=1)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="above 0, got 0 and 4"):
        SampleLog(every_n_steps=0)
    with pytest.raises(UserError, match="needs a module with experience and tokenizer, Tiny lacks them"):
        trainer(SampleLog()).fit(Tiny())
