"""Metrics, settings and the finished model in MLflow, without training waiting for it.

Not Lightning's MLFlowLogger: that one writes synchronously (5 ms a step on sqlite), does not start on MLflow's present
default store, and fails when a setting has changed since the run began.
"""

import os
import re
import time
import warnings
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from relax.logging.mlflow_run import MLflowRun, first_line, open_run

_FLUSH_SECONDS, _FLUSH_VALUES = 5.0, 500
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # what one call of MLflow's log_batch may hold
_KEPT_VALUES = 100_000  # while the server is away
_RETRY_SECONDS = 30.0  # doubled after every failure
_PARAM_LENGTH = 500
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class _Value(NamedTuple):
    key: str
    value: float
    timestamp: int  # ms
    step: int


class BufferedMLFlowLogger(Logger):
    """Writes to MLflow every 5 seconds or 500 values, before every checkpoint and at the end.

    A run that resumes in the same folder continues its MLflow run, whose id lies there in ``mlflow_run_id``; values of
    steps that it had already written are not written again. If the server goes away there is one warning, training goes
    on, and up to 100,000 values wait for its return.

    Args:
        folder: the run's folder; its name is the run's.
        save_dir: folder of the local store, used unless a tracking server is given; by default ``folder``.
        tracking_uri: by default the environment's ``MLFLOW_TRACKING_URI``, else ``sqlite:///<save_dir>/mlflow.db``.
        experiment: by default the environment's ``MLFLOW_EXPERIMENT_NAME``, else ``relax``.

    Raises:
        UserError: the store cannot be used when the run starts.
    """

    def __init__(
        self,
        folder: str | Path,
        save_dir: str | Path | None = None,
        tracking_uri: str | None = None,
        experiment: str | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(folder).resolve()
        self._store = Path(save_dir or folder).resolve()
        given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._local = not given
        self.tracking_uri = given or f"sqlite:///{self._store / 'mlflow.db'}"
        self._experiment_name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "relax"
        self._opened: MLflowRun | None = None
        self._values: deque[_Value] = deque(maxlen=_KEPT_VALUES)
        self._replayed: dict[str, int] = {}  # what MLflow had of each metric when this process started
        self._written = time.monotonic()
        self._at_once = self._interrupted = self._warned = False
        self._retry_seconds, self._retry_at = _RETRY_SECONDS, 0.0

    # What Lightning asks

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str:
        """The run's id; empty until it is open, and on ranks other than 0."""
        return "" if self._opened is None else self._opened.run_id

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    @property
    def run_id(self) -> str:
        """The run's id; opens the run if need be."""
        return self._run().run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``MlflowClient``; the run is begun, or continued, when it is first asked for."""
        return self._run().client

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the values until it is time to write."""
        now = int(time.time() * 1000)
        self._values.extend(_Value(key, value, now, step or 0) for key, value in metrics.items())
        clock = time.monotonic()
        due = self._at_once or len(self._values) >= _FLUSH_VALUES or clock - self._written >= _FLUSH_SECONDS
        if due and clock >= self._retry_at:
            self._at_once = False
            self._write()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Add the settings that the run does not have yet; MLflow does not let one change, so changes only warn."""
        self._attempt(self._write_params, _flatten(vars(params) if isinstance(params, Namespace) else params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Lightning's ModelCheckpoint calls this."""
        self.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left and close the run: FINISHED, FAILED, or KILLED if a signal ended it."""
        if self._opened is None:
            return
        self._write()
        if self._values:
            warnings.warn(f"MLflow at {self.tracking_uri} never got the last {len(self._values)} values", stacklevel=2)
        final = "KILLED" if self._interrupted else _STATUS.get(status, "FINISHED")
        self._attempt(self._opened.client.set_terminated, self._opened.run_id, final)

    # What our callbacks ask

    @rank_zero_only
    def flush(self) -> None:
        """Write everything now, and the next values at once: a step is logged after its checkpoint is saved."""
        self._at_once = True
        if time.monotonic() >= self._retry_at:
            self._write()

    @rank_zero_only
    def mark_interrupted(self) -> None:
        """The run is about to end early and may be resumed."""
        self._interrupted = True

    @rank_zero_only
    def log_folder(self, folder: Path) -> None:
        """Copy ``folder`` to the run's artifacts, under its own name."""
        run = self._run()
        self._attempt(run.client.log_artifacts, run.run_id, str(folder), folder.name)

    # Details

    def _run(self) -> MLflowRun:
        if self._opened is None:
            artifacts = (self._store / "mlflow_artifacts").as_uri() if self._local else None
            self._opened = open_run(self.folder, self.tracking_uri, self._experiment_name, artifacts)
            self._replayed = dict(self._opened.last_steps)
        return self._opened

    def _write(self) -> None:
        self._written = time.monotonic()
        if not self._values:
            return
        run = self._run()
        while self._values:
            batch = [self._values[i] for i in range(min(_BATCH_METRICS, len(self._values)))]
            new = [value for value in batch if value.step > self._replayed.get(value.key, -1)]
            if new and not self._attempt(self._write_metrics, new):
                return
            for value in batch:
                self._values.popleft()
                run.last_steps[value.key] = max(value.step, run.last_steps.get(value.key, -1))
        run.remember()

    def _write_metrics(self, values: list[_Value]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_clean(v.key), v.value, v.timestamp, v.step) for v in values]
        self._run().client.log_batch(self._run().run_id, metrics=metrics)

    def _write_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        run = self._run()
        known = run.client.get_run(run.run_id).data.params
        changed = [key for key in params if key in known and known[key] != params[key]]
        if changed:
            warnings.warn(f"MLflow keeps the run's first values of {', '.join(changed)}", stacklevel=4)
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), _BATCH_PARAMS):
            run.client.log_batch(run.run_id, params=new[start : start + _BATCH_PARAMS])

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> bool:
        """Do something that may fail without harm to training; after a failure, metrics wait before the next try."""
        from mlflow.exceptions import MlflowException

        try:
            action(*arguments)
        except (MlflowException, OSError) as error:
            self._retry_at = time.monotonic() + self._retry_seconds
            self._retry_seconds *= 2
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"MLflow at {self.tracking_uri} does not take what is logged ({first_line(error)}); training goes "
                    f"on, and up to {_KEPT_VALUES:,} values wait for it",
                    stacklevel=3,
                )
            return False
        self._retry_seconds, self._retry_at = _RETRY_SECONDS, 0.0
        return True


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``outer/inner``, cut to the length that every MLflow server takes."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_PARAM_LENGTH]
    return flat


def _clean(key: str) -> str:
    """Without the characters that MLflow refuses in names."""
    return re.sub(r"[^\w/. -]", "_", key)
