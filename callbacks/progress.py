"""How far the run is, counted in optimizer steps: a bar on a terminal, a plain line now and then in a log file."""

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from relax.lightning_loop import logged_metrics, step_completed, training_ends

LABELS = {
    "train/loss": "loss",
    "train/reward": "reward",
    "train/learning_rate": "lr",
    "throughput/tokens_per_second": "tokens/s",
}
_BAR_SECONDS = 0.25


class Progress(ProgressBar):
    """Shows steps, time left, loss, reward, learning rate, tokens a second and what is logged with ``prog_bar=True``.

    It writes to stderr and reads metrics, which waits for the device, only when it shows them.

    Args:
        line_seconds: where stderr is no terminal, how often a line is written.
    """

    def __init__(self, line_seconds: float = 10.0) -> None:
        super().__init__()
        self.line_seconds = line_seconds
        self._enabled = True
        self._display: _Display | None = None
        self._shown = 0.0

    def disable(self) -> None:
        """Lightning's hook."""
        self._enabled = False

    def enable(self) -> None:
        """Lightning's hook."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        if not self._enabled:
            return
        steps = trainer.estimated_stepping_batches
        total = int(steps) if math.isfinite(steps) and steps > 0 else None  # -1: a stream without max_steps
        console = Console(stderr=True)
        kind = _Bar if console.is_terminal else _Lines
        self._display, self._shown = kind(console, total, trainer.global_step), 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step if it is time to."""
        if self._display is None or not step_completed(trainer):
            return
        seconds = _BAR_SECONDS if isinstance(self._display, _Bar) else self.line_seconds
        now = time.monotonic()
        if now - self._shown >= seconds or training_ends(trainer):
            self._shown = now
            self._display.step(trainer.global_step, trainer.current_epoch, _figures(trainer, outputs))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line of figures."""
        if self._display is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        figures = {k: float(v) for k, v in logged_metrics(trainer).items() if k.startswith("val")}
        self._display.note(f"step {trainer.global_step}  {_format(figures)}")

    def on_evaluation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, figures: Mapping[str, float], seconds: float
    ) -> None:
        """`Evaluate`'s hook: one line of figures."""
        if self._display is not None:
            self._display.note(f"step {trainer.global_step}  {_format(figures)}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None


class _Display(Protocol):
    def __init__(self, console: Console, total: int | None, done: int) -> None: ...

    def step(self, done: int, epoch: int, figures: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


class _Bar:
    def __init__(self, console: Console, total: int | None, done: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = RichProgress(*columns, TextColumn("{task.description}"), console=console)
        self._task = self._progress.add_task("", total=total, completed=done)
        self._progress.start()

    def step(self, done: int, epoch: int, figures: dict[str, float]) -> None:
        self._progress.update(self._task, completed=done, description=_format(figures))

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, console: Console, total: int | None, done: int) -> None:
        self._console, self._total, self._first = console, total, done
        self._started = time.monotonic()

    def step(self, done: int, epoch: int, figures: dict[str, float]) -> None:
        of_total = "" if self._total is None else f"/{self._total}"
        self.note(f"step {done}{of_total}  epoch {epoch}  {_format(figures)}{self._left(done)}")

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        pass

    def _left(self, done: int) -> str:
        if self._total is None or done == self._first:
            return ""
        seconds = (time.monotonic() - self._started) / (done - self._first) * (self._total - done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"


def _figures(trainer: L.Trainer, outputs: Any) -> dict[str, float]:
    """What to show of a step; the loss is there even for a module that logs nothing."""
    metrics = trainer.callback_metrics
    figures = {label: float(metrics[name]) for name, label in LABELS.items() if name in metrics}
    if isinstance(outputs, dict) and "loss" in outputs and "loss" not in figures:
        figures["loss"] = float(outputs["loss"]) * trainer.accumulate_grad_batches
    marked = {k: v for k, v in trainer.progress_bar_metrics.items() if k not in LABELS and isinstance(v, float)}
    return figures | marked


def _format(figures: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name} {value:,.0f}" if value >= 1e4 else f"{name} {value:.4g}" for name, value in figures.items()
    )
