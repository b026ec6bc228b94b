"""The one thread that writes to an MLflow run, and its patience with a server that is away."""

import json
import re
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from relax.logging.mlflow_run import MLflowRun, brief

_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # what one call of MLflow's log_batch may hold
_KEPT_VALUES = 100_000  # while the server is away
_RETRY_SECONDS = 30.0  # doubled after every failure
_TABLES_TAG = "mlflow.loggedArtifacts"  # by which MLflow's pages and load_table know a file as a table


Table: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows, all with the same columns."""


class Value(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp: int  # ms
    step: int


class MLflowWriter:
    """Writes to ``run`` in a thread of its own, in the order of the calls.

    MLflow takes 5 ms for a call and 0.07 ms for a value even on a local store; a server may take seconds.
    """

    def __init__(self, run: MLflowRun, address: str) -> None:
        self.run, self._address = run, address
        self._replayed = dict(run.last_steps)  # what MLflow had of each metric when this process started
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-writer")
        self._latest: Future[None] | None = None
        # Only the thread touches these:
        self._values: deque[Value] = deque(maxlen=_KEPT_VALUES)
        self._tables: dict[str, Table] = {}
        self._warned = False
        self._retry_seconds, self._retry_at = _RETRY_SECONDS, 0.0

    def write(self, values: list[Value], tables: dict[str, Table]) -> None:
        """Write the values and tables, and what still waits; while the server is away they are kept."""
        self._submit(self._write, values, tables, False)

    def write_params(self, params: dict[str, str]) -> None:
        """Write the settings that the run does not have, warn of those that differ."""
        self._submit(self._attempt, self._write_params, params)

    def write_folder(self, folder: Path) -> None:
        """Copy ``folder`` to the run's artifacts."""
        self._submit(self._attempt, self.run.client.log_artifacts, self.run.run_id, str(folder), folder.name)

    def wait(self) -> None:
        """Return when everything is written, or was tried; a server that is away costs seconds once, then nothing.

        Raises:
            UserError: the run's folder cannot be written.
        """
        if self._latest is not None:
            self._latest.result()

    def close(self, status: str) -> None:
        """Try once more to write what waits, then give the run its final status. It may be written to again."""
        self._submit(self._write, [], {}, True)
        self._submit(self._attempt, self.run.client.set_terminated, self.run.run_id, status)
        self.wait()

    # In the thread

    def _submit(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self._latest is not None and self._latest.done():
            self._latest.result()  # raise here what went wrong there
        self._latest = self._thread.submit(action, *arguments)

    def _write(self, values: list[Value], tables: dict[str, Table], last_try: bool) -> None:
        self._values.extend(v for v in values if v.step > self._replayed.get(v.key, -1))
        self._tables |= tables
        if last_try or time.monotonic() >= self._retry_at:
            self._write_values()
            self._write_tables()
        if last_try and self._values:
            warnings.warn(f"MLflow at {self._address} never got the last {len(self._values)} values", stacklevel=2)

    def _write_values(self) -> None:
        written = False
        while self._values:
            batch = [self._values[i] for i in range(min(_BATCH_METRICS, len(self._values)))]
            if not self._attempt(self._write_metrics, batch):
                break
            for value in batch:
                self._values.popleft()
                self.run.last_steps[value.key] = value.step
            written = True
        if written:
            self.run.remember()

    def _write_tables(self) -> None:
        while self._tables and not self._values:  # else the server is away
            name = next(iter(self._tables))
            if not self._attempt(self._write_table, name, self._tables[name]):
                break
            del self._tables[name]

    def _write_metrics(self, values: list[Value]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_clean(v.key), v.value, v.timestamp, v.step) for v in values]
        self.run.client.log_batch(self.run.run_id, metrics=metrics)

    def _write_table(self, name: str, rows: Table) -> None:
        """In the form of ``MlflowClient.log_table``, which would append to what is there, and needs pandas."""
        client, run_id, file = self.run.client, self.run.run_id, f"{name}.json"
        columns = list(rows[0])
        text = json.dumps({"columns": columns, "data": [[row[column] for column in columns] for row in rows]})
        client.log_text(run_id, text, file)
        tables = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        if (entry := {"path": file, "type": "table"}) not in tables:
            client.set_tag(run_id, _TABLES_TAG, json.dumps([*tables, entry]))

    def _write_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        client, run_id = self.run.client, self.run.run_id
        known = client.get_run(run_id).data.params
        changed = [key for key in params if key in known and known[key] != params[key]]
        if changed:
            warnings.warn(f"MLflow keeps the run's first values of {', '.join(changed)}", stacklevel=2)
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), _BATCH_PARAMS):
            client.log_batch(run_id, params=new[start : start + _BATCH_PARAMS])

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> bool:
        """Do something that may fail without harm to training; after a failure, values wait before the next try."""
        from mlflow.exceptions import MlflowException

        try:
            action(*arguments)
        except (MlflowException, OSError) as error:
            self._retry_at = time.monotonic() + self._retry_seconds
            self._retry_seconds *= 2
            if not self._warned:
                self._warned = True
                reason = f"does not take what is logged ({brief(error)})"
                warnings.warn(
                    f"MLflow at {self._address} {reason}; training goes on, up to {_KEPT_VALUES:,} values wait for it",
                    stacklevel=2,
                )
            return False
        self._retry_seconds, self._retry_at = _RETRY_SECONDS, 0.0
        return True


def _clean(key: str) -> str:
    """Without the characters that MLflow refuses in names."""
    return re.sub(r"[^\w/. -]", "_", key)
