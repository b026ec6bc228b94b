"""The errors that are shown to people in one line, without a traceback."""

import errno
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave: the rule, the value received, what to change, in one line.

    The command line prints its message and exits with 2; from Python it is an ordinary ``ValueError``.
    """


class TrainingStopped(RuntimeError):  # noqa: N818, it is not always an error
    """Training cannot go on, through no mistake in the settings: what happened, where, and what to do, in one line.

    The command line prints its message without a traceback, as it does for a `UserError`, and exits with 1.
    """


class NonFiniteLoss(TrainingStopped, FloatingPointError):  # noqa: N818, it says what happened
    """The loss or its gradient is not a finite number; the weights have not been touched by it."""


def storage_error(path: Path, error: OSError) -> UserError:
    """What to tell people when ``path`` cannot be written: full, read-only, or the system's own reason."""
    reason, advice = error.strerror or str(error), "check the folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason, advice = f"no room left ({reason})", "free some space or move --output_dir"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason, advice = f"not allowed to write there ({reason})", "make it writable or move --output_dir"
    return UserError(f"cannot write {path.name} in {path.parent}: {reason}; {advice}")
