"""No library phones home on its own."""

import os
from pathlib import Path

import pytest
from tiny_models import network_calls

from relax.privacy import telemetry_off

SWITCHES = (
    "HF_HUB_DISABLE_TELEMETRY",
    "DISABLE_SAFETENSORS_CONVERSION",
    "HF_UPDATE_DOWNLOAD_COUNTS",
    "MLFLOW_DISABLE_TELEMETRY",
)


def test_what_the_user_sets_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    telemetry_off()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_local_data_and_a_local_tracking_store_open_no_connection(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    program = """
import time
from relax.privacy import telemetry_off
telemetry_off()
import datasets, huggingface_hub.constants, mlflow
assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
datasets.load_dataset("json", data_files="rows.jsonl", cache_dir="cache")
mlflow.set_tracking_uri("sqlite:///runs.db")
with mlflow.start_run():
    mlflow.log_metric("loss", 1.0)
time.sleep(1)  # mlflow asks for its settings in a thread
"""
    assert network_calls(program, tmp_path, without=SWITCHES) == []
