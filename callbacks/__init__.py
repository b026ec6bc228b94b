"""Callbacks for any ``lightning.Trainer``: each does one thing and works alone."""

from callbacks.checkpoint import Checkpoint
from callbacks.data_audit import DataAudit
from callbacks.defaults import default_callbacks
from callbacks.hf_export import HFExport
from callbacks.metrics_file import MetricsFile
from callbacks.nan_guard import NaNGuard
from callbacks.progress import Progress
from callbacks.safe_interrupt import SafeInterrupt
from callbacks.step_seed import StepSeed
from callbacks.throughput import Throughput

__all__ = [
    "Checkpoint",
    "DataAudit",
    "HFExport",
    "MetricsFile",
    "NaNGuard",
    "Progress",
    "SafeInterrupt",
    "StepSeed",
    "Throughput",
    "default_callbacks",
]
