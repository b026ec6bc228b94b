"""Finds the MLflow run of a folder, or begins one. Imports mlflow when it is used, not before."""

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relax.atomic_file import atomic_write
from relax.errors import UserError
from relax.privacy import telemetry_off

RUN_FILE = "mlflow_run_id"


@dataclass
class MLflowRun:
    """An open run."""

    client: Any
    """``mlflow.MlflowClient``"""
    run_id: str
    file: Path
    """Where the folder keeps what follows."""
    last_steps: dict[str, int] = field(default_factory=dict)
    """The last step written of each metric."""

    def remember(self) -> None:
        """Keep the run's id and how far it was written, for the process that resumes."""
        with atomic_write(self.file) as file:
            file.write(json.dumps({"run_id": self.run_id, "last_steps": self.last_steps}).encode())


def open_run(folder: Path, tracking_uri: str, experiment: str, artifacts: str | None) -> MLflowRun:
    """Continue the run that ``folder`` began, or begin one of the folder's name.

    Args:
        folder: the run's folder.
        tracking_uri: MLflow's store or server.
        experiment: name of the experiment, created if need be.
        artifacts: where a new experiment keeps its files; None leaves it to the server.

    Raises:
        UserError: the store cannot be used.
    """
    telemetry_off()
    # MLflow's own patience is minutes, during which training would stand still.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # which MLflow lets through when it opens a store

    try:
        client = MlflowClient(tracking_uri)
        run = _continue(client, folder / RUN_FILE) or _create(client, folder, experiment, artifacts)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise UserError(
            f"MLflow at {tracking_uri} cannot be used ({brief(error)}); start it, set MLFLOW_TRACKING_URI, or "
            "choose another --logger"
        ) from error
    run.remember()
    return run


def brief(error: BaseException) -> str:
    """MLflow's messages go on for many lines: the first, and of a long one its beginning and end."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:120]} ... {line[-75:]}"


def _continue(client: Any, file: Path) -> MLflowRun | None:
    from mlflow.exceptions import MlflowException

    if not file.exists():
        return None
    state = json.loads(file.read_text())
    try:
        deleted = client.get_run(state["run_id"]).info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        deleted = True
    if deleted:
        warnings.warn(f"the MLflow run {state['run_id']} of {file.parent} is gone: a new one begins", stacklevel=2)
        return None
    client.update_run(state["run_id"], status="RUNNING")
    return MLflowRun(client, file=file, **state)


def _create(client: Any, folder: Path, experiment: str, artifacts: str | None) -> MLflowRun:
    from mlflow.tracking.context.registry import resolve_tags

    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=artifacts)
    run = client.create_run(experiment_id, tags=resolve_tags(), run_name=folder.name)
    return MLflowRun(client, run.info.run_id, folder / RUN_FILE)
