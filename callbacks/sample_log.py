"""What the policy writes: some completions with their scores, in the terminal, in a file and with the run."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from relax.data.audit import LOG_WIDTH
from relax.errors import UserError
from relax.lightning_loop import step_completed
from relax.protocols import HasExperience, HasTokenizer, KeepsTables
from relax.report import say
from relax.sample_table import SampleRow, printed, sample_rows, spread
from relax.step_lines import append, take_over
from relax.visible_text import shortened

FILE = "samples.jsonl"
TABLE_ROWS = 200
"""Of the table that loggers keep: the latest. The file has all."""
TABLE_CHARACTERS = 4000
"""Of a prompt or completion in it."""


class SampleLog(L.Callback):
    """Shows completions of the current iteration after the first optimizer step and every ``every_n_steps``.

    The best, the worst and some between them: prompt, completion, score, each reward, advantage, length. Printed as a
    table; in full in ``samples.jsonl``, from which a resumed run removes what it will write again; and the latest as a
    table of loggers that keep tables. On rank 0 only.

    Args:
        folder: the run's; None writes no file.
        every_n_steps: optimizer steps.
        num_samples: completions to show.
        seed: which of equally good completions are shown is a function of it and of the step.

    Raises:
        UserError: a setting out of range; a module without ``experience`` and ``tokenizer``; the file cannot be
            written.
    """

    def __init__(
        self, folder: str | Path | None = None, every_n_steps: int = 10, num_samples: int = 4, seed: int = 0
    ) -> None:
        if every_n_steps < 1 or num_samples < 1:
            raise UserError(
                f"every_n_steps and num_samples of SampleLog must be above 0, got {every_n_steps} and {num_samples}"
            )
        self.path = None if folder is None else Path(folder) / FILE
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed
        self._table: deque[SampleRow] = deque(maxlen=TABLE_ROWS)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse at once a module that has no completions to show."""
        if stage == "fit" and not (isinstance(pl_module, HasExperience) and isinstance(pl_module, HasTokenizer)):
            raise UserError(
                f"SampleLog needs a module with experience and tokenizer, {type(pl_module).__name__} lacks them"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the file back to where the run resumes, or put another run's aside."""
        self._table.clear()
        if trainer.is_global_zero and self.path is not None:
            resumed = trainer.ckpt_path is not None
            lines = take_over(self.path, trainer.global_step, resumed=resumed, what="samples")
            self._table.extend(_for_table(json.loads(line)) for line in lines[-TABLE_ROWS:])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """After an optimizer step, if it is time to."""
        due = trainer.global_step == 1 or trainer.global_step % self.every_n_steps == 0
        if due and trainer.is_global_zero and step_completed(trainer):
            self._show(trainer, pl_module)

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, HasExperience), "setup has checked it"
        assert isinstance(pl_module, HasTokenizer), "setup has checked it"
        experience, step = pl_module.experience, trainer.global_step
        assert experience is not None, "an optimizer step learns from one"
        chosen = spread(experience.completions["score"].tolist(), self.num_samples, seed=self.seed, step=step)
        rows = sample_rows(experience, chosen, pl_module.tokenizer, step)
        _print(rows, f"step {step}: {len(rows)} of {len(experience)} completions, best first")
        if self.path is not None:
            append(self.path, (json.dumps(row, ensure_ascii=False) for row in rows))
        self._table.extend(map(_for_table, rows))
        for logger in trainer.loggers:
            if isinstance(logger, KeepsTables):
                logger.keep_table("samples", list(self._table))


def _for_table(row: SampleRow) -> SampleRow:
    return row | {name: shortened(row[name], TABLE_CHARACTERS) for name in ("prompt", "completion")}


def _print(rows: list[SampleRow], title: str) -> None:
    terminal = Console(force_jupyter=False)  # it knows NO_COLOR, dumb terminals and pipes
    console = terminal if terminal.is_terminal else Console(force_jupyter=False, width=LOG_WIDTH)
    with console.capture() as text:
        console.print(printed(rows, title))
    say(*text.get().rstrip("\n").split("\n"))
