"""Files that are either the old one or the complete new one, whatever happens in between (kill -9, a full disk)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from relax.errors import storage_error

TEMPORARY = ".tmp-"  # between a file's name and the writer's process id


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a temporary file beside ``path``; when the block ends well, make it durable and rename it to ``path``.

    Raises:
        UserError: the file cannot be written (no room, not allowed); ``path`` is as it was, the temporary file is gone.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise storage_error(path, cause) from error
    finally:
        with suppress(OSError):  # it is renamed by now, or the error on its way says more
            temporary.unlink()


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete the temporary files that killed writers of ``pattern`` left in ``folder``."""
    for leftover in folder.glob(f"{pattern}{TEMPORARY}*"):
        leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException) -> OSError | None:
    """The system's own error behind ``error``: torch.save covers it with a RuntimeError of its zip writer."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__context__
    return seen
