"""Metrics, settings and models in MLflow: complete, once, and never in training's way."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from mlflow import MlflowClient
from mlflow_server import TrackingServer
from torch import nn
from torch.utils.data import DataLoader

from relax.errors import UserError
from relax.logging import LOGGERS, build_logger, mlflow_writer
from relax.logging.mlflow_logger import BufferedMLFlowLogger


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One local store for all tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}")


def steps(store: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client(store).get_metric_history(run_id, key)]


class Module(L.LightningModule):
    def __init__(self, rate: float = 0.1, save: Path | None = None) -> None:
        super().__init__()
        self.save_hyperparameters({"rate": rate, "nested": {"inner": [1, 2]}})
        self.net, self.save = nn.Linear(2, 1), save

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("train/loss", float(self.global_step))
        return self.net(batch).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.save is not None and self.global_step == 5:
            self.trainer.save_checkpoint(self.save)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(8, 2))


def fit(module: L.LightningModule, logger: Any, folder: Path, **arguments: Any) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    L.Trainer(logger=logger, default_root_dir=folder, **options).fit(module, **arguments)


def test_a_run_is_complete_in_the_local_store(store: Path, tmp_path: Path) -> None:
    logger = BufferedMLFlowLogger(tmp_path / "my-run", save_dir=store)
    fit(Module(), logger, tmp_path)
    run = client(store).get_run(logger.run_id)
    assert (run.info.run_name, run.info.status) == ("my-run", "FINISHED")
    assert run.data.params == {"rate": "0.1", "nested/inner": "[1, 2]"}
    assert steps(store, logger.run_id, "train/loss") == [(i, float(i)) for i in range(8)]
    assert [p.name for p in tmp_path.iterdir()] == ["my-run"]  # nothing beside, no ./mlruns
    assert [p.name for p in (tmp_path / "my-run").iterdir()] == ["mlflow_run_id"]


def test_the_resumed_run_is_the_same_and_has_every_step_once(store: Path, tmp_path: Path) -> None:
    first = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    fit(Module(save=tmp_path / "5.ckpt"), first, tmp_path)
    second = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    statuses = []

    class Longer(Module):
        def on_train_start(self) -> None:
            statuses.append(client(store).get_run(second.run_id).info.status)

    with pytest.warns(UserWarning, match="keeps the run's first values of rate"):
        fit(Longer(rate=0.2), second, tmp_path, ckpt_path=tmp_path / "5.ckpt")
    assert second.run_id == first.run_id
    assert statuses == ["RUNNING"]
    assert steps(store, first.run_id, "train/loss") == [(i, float(i)) for i in range(8)]
    run = client(store).get_run(first.run_id)
    assert (run.data.params["rate"], run.info.status) == ("0.1", "FINISHED")


def test_values_wait_for_the_checkpoint_and_the_next_ones_do_not(store: Path, tmp_path: Path) -> None:
    logger = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    logger.log_metrics({"a": 1.0}, step=0)
    assert steps(store, logger.run_id, "a") == []
    logger.flush()
    assert steps(store, logger.run_id, "a") == [(0, 1.0)]
    logger.log_metrics({"a": 2.0}, step=1)  # the step of the checkpoint: Lightning logs it after the save
    logger.log_metrics({"a": 3.0}, step=2)
    deadline = time.monotonic() + 10
    while len(steps(store, logger.run_id, "a")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert steps(store, logger.run_id, "a") == [(0, 1.0), (1, 2.0)]
    logger.finalize("success")
    assert steps(store, logger.run_id, "a") == [(0, 1.0), (1, 2.0), (2, 3.0)]


@pytest.mark.parametrize(("status", "interrupted", "kept"), [("failed", False, "FAILED"), ("success", True, "KILLED")])
def test_how_a_run_ended_is_kept(store: Path, tmp_path: Path, status: str, interrupted: bool, kept: str) -> None:
    logger = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    run_id = logger.run_id
    if interrupted:
        logger.mark_interrupted()
    logger.finalize(status)
    assert client(store).get_run(run_id).info.status == kept


def test_more_values_and_settings_than_one_call_may_hold(store: Path, tmp_path: Path) -> None:
    logger = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    logger.log_metrics({f"m{i}": float(i) for i in range(1200)}, step=0)
    logger.log_hyperparams({f"p{i}": i for i in range(120)} | {"long": "x" * 9000})
    logger.log_metrics({"odd: name [unit]": float("nan")}, step=0)
    logger.finalize("success")
    run = client(store).get_run(logger.run_id)
    assert len([key for key in run.data.metrics if key.startswith("m")]) == 1200
    assert len(run.data.params) == 121
    assert "odd_ name _unit_" in run.data.metrics


def test_a_folder_becomes_an_artifact(store: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    logger = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    logger.log_folder(tmp_path / "model")
    logger.finalize("success")
    assert [file.path for file in client(store).list_artifacts(logger.run_id, "model")] == ["model/config.json"]


def test_a_table_is_kept_with_the_values_and_replaces_the_one_before(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")  # where load_table looks
    logger = BufferedMLFlowLogger(tmp_path / "run")
    logger.keep_table("samples", [{"step": 1, "text": "a", "score": None}])
    assert client(store).list_artifacts(logger.run_id) == []
    logger.flush()
    rows = [{"step": 1, "text": "ä\n[b]", "score": 0.5}, {"step": 2, "text": "", "score": 1.0}]
    logger.keep_table("samples", rows)
    logger.keep_table("others", [{"x": 1}])
    logger.finalize("success")
    run = client(store).get_run(logger.run_id)
    table = client(store).load_table(run.info.experiment_id, "samples.json", run_ids=[logger.run_id])
    assert table.to_dict("records") == rows
    assert {file.path for file in client(store).list_artifacts(logger.run_id)} == {"samples.json", "others.json"}


def test_a_run_that_was_deleted_is_begun_anew(store: Path, tmp_path: Path) -> None:
    first = BufferedMLFlowLogger(tmp_path / "run", save_dir=store).run_id
    client(store).delete_run(first)
    with pytest.warns(UserWarning, match=f"run {first} of .* is gone"):
        assert BufferedMLFlowLogger(tmp_path / "run", save_dir=store).run_id != first


def test_training_goes_on_while_the_server_is_away_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_writer, "_RETRY_SECONDS", 0.0)
    server = TrackingServer()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.start())
    logger = BufferedMLFlowLogger(tmp_path / "run")
    logger.log_hyperparams({"rate": 0.1})
    logger.log_metrics({"a": 0.0}, step=0)
    logger.flush()
    assert server.params == {"rate": "0.1"}
    server.stop()

    def lose_three_steps() -> None:
        for step in range(1, 4):
            logger.log_metrics({"a": float(step)}, step=step)
            logger.flush()

    with pytest.warns(UserWarning, match="training goes on, up to 100,000 values wait") as caught:
        lose_three_steps()
    assert len([w for w in caught if "training goes on" in str(w.message)]) == 1
    server.start()
    logger.log_metrics({"a": 4.0}, step=4)
    logger.finalize("success")
    server.stop()
    assert server.metrics == [("a", step, float(step)) for step in range(5)]
    assert server.status == "FINISHED"


def test_values_that_the_server_never_took_are_counted(tmp_path: Path) -> None:
    server = TrackingServer()
    logger = BufferedMLFlowLogger(tmp_path / "run", tracking_uri=server.start())
    assert logger.run_id == "abc"
    server.stop()
    logger.log_metrics({"a": 1.0, "b": 2.0}, step=1)
    with pytest.warns(UserWarning, match="never got the last 2 values"):
        logger.finalize("success")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "file:./mlruns", "nonsense://x", "sqlite:////proc/none/m.db"]
)
def test_a_store_that_cannot_be_used_is_told_at_the_start(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=rf"MLflow at {address} cannot be used") as caught:
        _ = BufferedMLFlowLogger(tmp_path / "run", tracking_uri=address).experiment
    assert "\n" not in str(caught.value)


def test_logging_costs_training_microseconds(store: Path, tmp_path: Path) -> None:
    logger = BufferedMLFlowLogger(tmp_path / "run", save_dir=store)
    _ = logger.experiment
    metrics = {f"train/{i}": float(i) for i in range(10)}
    start = time.perf_counter()
    for step in range(40):
        logger.log_metrics(metrics, step)
    assert (time.perf_counter() - start) / 40 < 1e-3  # measured: 3 microseconds
    logger.finalize("success")


def test_names_of_loggers(tmp_path: Path) -> None:
    assert list(LOGGERS) == ["none", "csv", "tensorboard", "mlflow"]
    assert build_logger("none", tmp_path) is False
    assert isinstance(build_logger("csv", tmp_path), CSVLogger)
    assert isinstance(build_logger("tensorboard", tmp_path), TensorBoardLogger)
    assert isinstance(build_logger("mlflow", tmp_path / "run"), BufferedMLFlowLogger)
    with pytest.raises(UserError, match="did you mean mlflow"):
        build_logger("mlfow", tmp_path)


def test_mlflow_is_not_loaded_before_a_run_begins() -> None:
    code = (
        "import sys, pathlib, callbacks, relax.logging.mlflow_logger as m; "
        "logger = m.BufferedMLFlowLogger('run'); logger.log_metrics({'a': 1.0}, 0); "
        "sys.exit('mlflow' in sys.modules or 'tensorboard' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
