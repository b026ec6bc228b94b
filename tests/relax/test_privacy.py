"""No library phones home on its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_libraries_read_these_switches_and_open_no_connection(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    program = """
import sys, time
def watch(event, args):
    assert event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"), (event, args)
sys.addaudithook(watch)
from relax.privacy import telemetry_off
telemetry_off()
import datasets, huggingface_hub.constants, mlflow
from mlflow.telemetry.utils import is_telemetry_disabled
assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY and is_telemetry_disabled()
datasets.load_dataset("json", data_files="rows.jsonl", cache_dir="cache")
mlflow.set_tracking_uri("sqlite:///runs.db")
with mlflow.start_run():
    mlflow.log_metric("loss", 1.0)
time.sleep(1)  # mlflow asks for its settings in a thread
"""
    environment = {name: value for name, value in os.environ.items() if name not in (*SWITCHES, "HF_HUB_OFFLINE", "CI")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "AssertionError" not in done.stderr  # raised inside a thread
