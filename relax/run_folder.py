"""The folder of a run: whose it is, where to resume, and a promise that no other run is overwritten unasked.

run.json          marks the folder as a run's (format, time, trainer)
config.yaml       the resolved flags; ``--config`` takes it back (written by the scripts)
metrics.jsonl     one line a logged step
data_audit.*      what the model was shown: for a person as .txt, for a program as .json
checkpoints/      what ``--resume=auto`` continues from
model/            the exported model or adapter
"""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from relax.checkpoint_io import latest_checkpoint
from relax.errors import UserError, storage_error

MARKER = "run.json"
WRITTEN = (
    *(MARKER, "config.yaml", "metrics.jsonl", "data_audit.txt", "data_audit.json", "samples.jsonl"),
    "mlflow_run_id",
)


def checkpoint_folder(folder: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return folder / "checkpoints"


def export_folder(folder: Path) -> Path:
    """Where a run writes the model it trained."""
    return folder / "model"


def resume_point(folder: Path | None, resume: str | None) -> Path | None:
    """The checkpoint to continue from, or None to start at the beginning.

    ``auto`` takes the newest intact one of ``folder``; without one (the job died before the first) the run starts anew.

    Raises:
        UserError: ``auto`` without a folder, or a path that does not exist.
    """
    if resume is None:
        return None
    if resume == "auto":
        if folder is None:
            raise UserError("--resume=auto needs the run's folder; add --output_dir=FOLDER")
        return latest_checkpoint(checkpoint_folder(folder))
    path = Path(resume)
    if not path.exists():
        raise UserError(f"--resume must be 'auto' or a checkpoint that exists, got {resume}")
    return path


def fresh(kind: str) -> Path:
    """A new folder's name, ``runs/KIND-DATE-TIME``; the processes that this one starts get the same."""
    name = f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / os.environ.setdefault("RELAX_RUN_NAME", name)


def check(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that ``claim`` would refuse, touching nothing.

    Raises:
        UserError: it holds another run or foreign files, or is a file.
    """
    held = (folder / MARKER).exists()
    started = held and ((folder / "metrics.jsonl").exists() or any(checkpoint_folder(folder).glob("*")))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir must be a folder, got the file {folder}")
    if started and not resume and not overwrite:  # one that failed before its first step holds nothing
        raise UserError(
            f"{folder} already holds a run; continue it with --resume=auto, replace it with --overwrite, "
            "or choose another --output_dir"
        )
    if not held and folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output_dir must be new, empty or a run's, got {folder}, which holds other files")


def claim(folder: Path, *, kind: str, resume: bool, overwrite: bool) -> None:
    """Make ``folder`` this run's; an overwritten run is removed.

    Raises:
        UserError: as ``check``, or the folder cannot be written.
    """
    check(folder, resume=resume, overwrite=overwrite)
    if not resume:
        _clear(folder)
    try:
        checkpoint_folder(folder).mkdir(parents=True, exist_ok=True)
        if not (folder / MARKER).exists():
            made = {"trainer": kind, "created": datetime.now(UTC).isoformat(timespec="seconds")}
            (folder / MARKER).write_text(json.dumps(made) + "\n")
    except OSError as error:
        raise storage_error(folder / MARKER, error) from error


def _clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in ("checkpoints", "model", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
