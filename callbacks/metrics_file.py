"""The run's figures as a text file: one JSON object a line, readable with nothing installed."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from relax.lightning_loop import logged_metrics, step_is_logged
from relax.step_lines import append, take_over

_FLUSH_SECONDS = 5.0
_FLUSH_ROWS = 100


class MetricsFile(L.Callback):
    """Appends what was logged: a row every ``log_every_n_steps`` optimizer steps, and one a validation or evaluation.

    A row holds ``step`` (optimizer steps done), ``epoch``, ``seconds`` (of training so far, over all its resumptions)
    and every metric logged since the row before, in full precision, NaN and infinities as Python's json writes them.
    Rows are written every 5 seconds or 100 rows, before every checkpoint and at the end. A run that was killed and
    resumed leaves the file of the uninterrupted one: rows after the checkpoint are dropped when it resumes.

    Args:
        path: the file, by convention ``metrics.jsonl``; one of another run is renamed to ``*.old``.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._active = False  # on the rank that writes, during a fit
        self._rows: list[tuple[dict[str, Any], dict[str, Tensor]]] = []  # place and metrics
        self._seen: dict[str, Tensor] = {}
        self._seconds = 0.0
        self._started = self._flushed = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return {"seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the file back to where the run resumes, or put another run's aside."""
        self._rows, self._seen = [], {}
        self._active = trainer.is_global_zero
        self._started = self._flushed = time.monotonic()
        if self._active:
            take_over(self.path, trainer.global_step, resumed=trainer.ckpt_path is not None, what="metrics")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Lightning's hook."""
        if self._active and step_is_logged(trainer):
            self._add_row(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        if self._active and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._add_row(trainer)

    def on_evaluation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, figures: Mapping[str, float], seconds: float
    ) -> None:
        """`Evaluate`'s hook."""
        if self._active:
            self._keep(trainer, {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Rows that a resumed run will not write again must not be lost."""
        self._flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        self._flush()
        self._active = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lightning's hook."""
        self._flush()
        self._active = False

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _add_row(self, trainer: L.Trainer) -> None:
        metrics = logged_metrics(trainer)
        fresh = {name: value for name, value in metrics.items() if not _same(value, self._seen.get(name))}
        self._seen |= fresh
        if fresh:
            self._keep(trainer, fresh)

    def _keep(self, trainer: L.Trainer, metrics: dict[str, Tensor]) -> None:
        place = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seconds": round(self._elapsed(), 3)}
        self._rows.append((place, metrics))  # still tensors: reading them here would wait for the device at every step
        if len(self._rows) >= _FLUSH_ROWS or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows, self._flushed = self._rows, [], time.monotonic()
        if not rows:
            return
        numbers = _numbers([metrics for _, metrics in rows])
        lines = [json.dumps(place | metrics | place) for (place, _), metrics in zip(rows, numbers, strict=True)]
        append(self.path, lines)


def _same(value: Tensor, before: Tensor | None) -> bool:
    """Whether it is the value of an earlier step, not logged anew: Lightning keeps that one in the same memory."""
    return before is not None and value.data_ptr() == before.data_ptr()


def _numbers(rows: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Every value of every row; exact, and with one transfer for all that are of one type on one device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for row in rows:
        for value in row.values():
            kinds.setdefault((value.dtype, value.device), []).append(value)
    numbers = {kind: iter(torch.stack(values).tolist()) for kind, values in kinds.items()}
    return [{name: next(numbers[value.dtype, value.device]) for name, value in row.items()} for row in rows]
