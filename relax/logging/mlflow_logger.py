"""Metrics, settings, tables and the finished model in MLflow, without training waiting for it.

Not Lightning's MLFlowLogger: that one writes synchronously (5 ms a step on sqlite), does not start on MLflow's present
default store, and fails when a setting has changed since the run began.
"""

import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from relax.logging.mlflow_run import open_run
from relax.logging.mlflow_writer import MLflowWriter, Table, Value

_FLUSH_SECONDS, _FLUSH_VALUES = 5.0, 500
_PARAM_LENGTH = 500  # what every MLflow server takes
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class BufferedMLFlowLogger(Logger):
    """Hands values to a thread that writes them: every 5 seconds or 500 values, before every checkpoint, at the end.

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
        store = Path(save_dir or folder).resolve()
        given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.tracking_uri = given or f"sqlite:///{store / 'mlflow.db'}"
        self._artifacts = None if given else (store / "mlflow_artifacts").as_uri()
        self._experiment_name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "relax"
        self._writer: MLflowWriter | None = None
        self._values: list[Value] = []
        self._tables: dict[str, Table] = {}
        self._handed_over = time.monotonic()
        self._at_once = self._interrupted = False

    # What Lightning asks

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str:
        """The run's id; empty until it is open, and on ranks other than 0."""
        return "" if self._writer is None else self._writer.run.run_id

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    @property
    def run_id(self) -> str:
        """The run's id; opens the run if need be."""
        return self._open().run.run_id

    @property
    def experiment(self) -> Any:
        """The ``MlflowClient``; the run is begun, or continued, when it is first asked for."""
        return self._open().run.client if _on_rank_zero() else _DummyExperiment()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the values until it is time to write."""
        if not _on_rank_zero():
            return
        now = int(time.time() * 1000)
        self._values += [Value(key, value, now, step or 0) for key, value in metrics.items()]
        due = len(self._values) >= _FLUSH_VALUES or time.monotonic() - self._handed_over >= _FLUSH_SECONDS
        if due or self._at_once:
            self._at_once = False
            self._hand_over()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Add the settings that the run does not have yet; MLflow does not let one change, so changes only warn."""
        if _on_rank_zero():
            settings = vars(params) if isinstance(params, Namespace) else params
            self._open().write_params(_flatten(settings))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Lightning's ModelCheckpoint calls this."""
        self.flush()

    def finalize(self, status: str) -> None:
        """Write what is left and close the run: FINISHED, FAILED, or KILLED if a signal ended it."""
        if self._writer is not None:  # as on all ranks but 0
            self._hand_over()
            self._writer.close("KILLED" if self._interrupted else _STATUS.get(status, "FINISHED"))

    # What our callbacks ask

    def flush(self) -> None:
        """Write everything now, and the next values at once: a step is logged after its checkpoint is saved."""
        self._at_once = True
        if _on_rank_zero():
            self._hand_over()
            self._open().wait()

    def mark_interrupted(self) -> None:
        """The run is about to end early and may be resumed."""
        self._interrupted = True

    def log_folder(self, folder: Path) -> None:
        """Copy ``folder`` to the run's artifacts, under its own name."""
        if _on_rank_zero():
            self._open().write_folder(folder)

    def keep_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep ``rows`` as the run's table ``name.json``, in place of what it held; written when values are."""
        if _on_rank_zero():
            self._tables[name] = rows

    # Details

    def _open(self) -> MLflowWriter:
        if self._writer is None:
            run = open_run(self.folder, self.tracking_uri, self._experiment_name, self._artifacts)
            self._writer = MLflowWriter(run, self.tracking_uri)
        return self._writer

    def _hand_over(self) -> None:
        values, self._values = self._values, []
        tables, self._tables = self._tables, {}
        self._handed_over = time.monotonic()
        self._open().write(values, tables)


def _on_rank_zero() -> bool:
    return rank_zero_only.rank == 0


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``outer/inner``, cut to a length that MLflow takes."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_PARAM_LENGTH]
    return flat
