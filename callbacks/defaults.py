"""The callbacks of an ordinary run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from callbacks.checkpoint import Checkpoint
from callbacks.data_audit import DataAudit
from callbacks.hf_export import HFExport
from callbacks.metrics_file import MetricsFile
from callbacks.nan_guard import NaNGuard
from callbacks.progress import Progress
from callbacks.safe_interrupt import SafeInterrupt
from callbacks.throughput import Throughput
from relax.launch.flags import KeepFlags, RunFlags
from relax.run_folder import checkpoint_folder


def default_callbacks(
    folder: str | Path | None,
    *,
    checkpoint_every_n_steps: int | None = None,
    keep_checkpoints: int = 2,
    monitor: str | None = None,
    mode: Literal["min", "max"] = "min",
    export: bool = True,
    progress: bool = True,
) -> list[L.Callback]:
    """Audit, throughput, NaN guard, progress; with a folder also checkpoints, safe interrupt, metrics and the export.

    Args:
        folder: the run's; None writes nothing.
        checkpoint_every_n_steps: None saves only the last step, and a step at which a signal stops the run.
        keep_checkpoints: how many of the newest stay.
        monitor: metric by which ``best.ckpt`` is chosen; None keeps no best.
        mode: whether the monitored metric is better when lower (min) or higher (max).
        export: write ``model/`` when the run is finished.
        progress: show it; False where the user brings another progress bar.
    """
    # In this order: what logs a figure before what writes it.
    chosen: list[L.Callback] = [DataAudit(folder), NaNGuard(), Throughput()]
    if progress:
        chosen.append(Progress())
    if folder is None:
        return chosen
    run, checkpoints = Path(folder), checkpoint_folder(Path(folder))
    chosen.append(MetricsFile(run / "metrics.jsonl"))
    if export:
        chosen.append(HFExport(run / "model"))
    chosen.append(Checkpoint(checkpoints, checkpoint_every_n_steps, keep_checkpoints, monitor, mode))
    chosen.append(SafeInterrupt(checkpoints))
    return chosen


def script_callbacks(
    folder: Path | None,
    own: Sequence[L.Callback],
    *,
    job: RunFlags,
    keeping: KeepFlags,
    monitor: str | None,
    progress: bool,
) -> list[L.Callback]:
    """Those of a script's run: ``own`` ones, then the default ones that its flags ask for.

    No default comes beside one of its kind in ``own``: Lightning allows one progress bar.

    Args:
        folder: the run's; None for a dry run.
        own: the user's, and what this kind of run has beside the default ones.
        job: how many checkpoints stay.
        keeping: how often they are written, and which is the best.
        monitor: the figure that says so; None keeps no best.
        progress: show it.
    """
    defaults = default_callbacks(
        folder,
        checkpoint_every_n_steps=keeping.checkpoint_every_n_steps,
        keep_checkpoints=job.keep_checkpoints,
        monitor=monitor,
        mode=keeping.monitor_mode,
        progress=progress and folder is not None,
    )
    kinds = tuple(type(callback) for callback in own)
    if any(isinstance(callback, ProgressBar) for callback in own):
        kinds += (ProgressBar,)
    return [*own, *(callback for callback in defaults if not isinstance(callback, kinds))]
