"""Checkpoint files: written whole or not at all, read without running code, named by optimizer step.

It knows files, not training: when to save, and how many to keep, is ``callbacks.Checkpoint``'s.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from relax.atomic_file import atomic_write
from relax.errors import UserError

if TYPE_CHECKING:
    import lightning as L

_STEP_FILE = re.compile(r"step=(\d+)\.ckpt")
# What zipfile and torch raise on damaged bytes (UnicodeDecodeError is a ValueError).
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin for local files, made safe; remote addresses (``s3://``) go to Lightning's own."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path`` atomically and durably.

        Raises:
            UserError: no room left or not allowed; whatever was at ``path`` before is intact.
        """
        if storage_options is not None or _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read ``path``, every byte against its checksum; tensors and plain values only unless ``weights_only=False``.

        Raises:
            UserError: there is no such file, it is damaged, or it holds objects that only running code could load.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only is not False)
        file = Path(path)
        if not file.is_file():
            raise UserError(f"there is no checkpoint {file}; --resume takes the path of one, or auto")
        _check_intact(file)
        try:
            loaded: dict[str, Any] = torch.load(file, map_location, weights_only=weights_only is not False)
        except pickle.UnpicklingError as error:
            unsafe = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(file))
            raise UserError(
                f"checkpoint {file} holds objects that cannot be loaded safely ({unsafe}); "
                "keep them out of hparams and callback states, and resume from a checkpoint of plain values"
            ) from error
        except _DAMAGE as error:
            raise _damaged(file, error) from error
        return loaded


def make_atomic(trainer: "L.Trainer") -> None:
    """Let ``trainer`` write checkpoints atomically and load only plain values, if it has Lightning's default plugin."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def step_checkpoint(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies; names sort by step."""
    return folder / f"step={step:08d}.ckpt"


def step_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The step and the path of every checkpoint named by `step_checkpoint`, oldest step first."""
    found = ((_STEP_FILE.fullmatch(path.name), path) for path in folder.glob("step=*.ckpt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint by step, or None; warns about a damaged one that it passes over.

    It looks whether the file is complete, not at every byte: loading does that. A folder is Lightning's sharded form.
    """
    for _, path in reversed(step_checkpoints(folder)):
        if (path / "meta.pt").is_file() or zipfile.is_zipfile(path):
            return path
        warnings.warn(f"passing over the checkpoint {path}, which is damaged or incomplete", stacklevel=2)
    return None


def _check_intact(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    if bad is not None:
        raise _damaged(file, f"wrong checksum of {bad}")


def _damaged(file: Path, reason: object) -> UserError:
    others = [path.name for _, path in step_checkpoints(file.parent) if path != file]
    advice = f"resume from {file.parent / others[-1]}" if others else "there is no other in its folder: start anew"
    return UserError(f"checkpoint {file} is damaged ({' '.join(str(reason).split())}); {advice}")


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)
