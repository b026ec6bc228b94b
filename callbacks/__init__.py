"""Callbacks for any ``lightning.Trainer``: each does one thing and works alone."""

from callbacks.checkpoint import Checkpoint
from callbacks.data_audit import DataAudit
from callbacks.defaults import default_callbacks
from callbacks.evaluate import Evaluate
from callbacks.hf_export import HFExport
from callbacks.kl_schedule import AdaptiveKL, ConstantKL, CosineKL, KLSchedule, LinearKL
from callbacks.metrics_file import MetricsFile
from callbacks.nan_guard import NaNGuard
from callbacks.progress import Progress
from callbacks.safe_interrupt import SafeInterrupt
from callbacks.sample_log import SampleLog
from callbacks.step_seed import StepSeed
from callbacks.sync_reference import SyncReference
from callbacks.throughput import Throughput

__all__ = [
    "AdaptiveKL",
    "Checkpoint",
    "ConstantKL",
    "CosineKL",
    "DataAudit",
    "Evaluate",
    "HFExport",
    "KLSchedule",
    "LinearKL",
    "MetricsFile",
    "NaNGuard",
    "Progress",
    "SafeInterrupt",
    "SampleLog",
    "StepSeed",
    "SyncReference",
    "Throughput",
    "default_callbacks",
]
