"""Files that may be gzipped: read on the way, or unpacked once where rows are wanted by position. Nothing of rows."""

import atexit
import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from relax.errors import UserError

_BUFFER_BYTES = 1 << 18


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, buffered, unpacked if its name ends in .gz.

    Raises:
        UserError: it cannot be opened, or, also inside the block, cannot be read to the end or unpacked.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() != ".gz":
                yield file
            else:  # a buffer of C around GzipFile, whose own readline is written in Python
                yield io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), _BUFFER_BYTES)
    except EOFError:
        raise UserError(f"{path}: the gzip file ends too early: it is truncated, fetch or write it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable gzip file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def unpacked(path: Path) -> Path:
    """``path`` itself, or what a .gz unpacks to: a temporary file (in $TMPDIR) that is gone when this process ends.

    Raises:
        UserError: the gzip file is truncated, damaged or unreadable, or there is no room for what is in it.
    """
    if path.suffix.lower() != ".gz":
        return path
    with opened(path) as packed:
        descriptor, name = tempfile.mkstemp(prefix="relax-", suffix=path.with_suffix("").suffix)
        copy = Path(name)
        atexit.register(_remove, copy, os.getpid())
        with os.fdopen(descriptor, "wb") as file:
            try:
                _copy(packed, file, path)
            except BaseException:
                copy.unlink()
                raise
    return copy


def _copy(packed: BinaryIO, file: BinaryIO, path: Path) -> None:
    while block := packed.read(_BUFFER_BYTES):
        try:
            file.write(block)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(
                f"{path}: no room to unpack it in {folder} ({error.strerror}); free some or set TMPDIR"
            ) from None


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a worker process that was forked and ends earlier
        path.unlink(missing_ok=True)
