"""Where a model, tokenizer or adapter is loaded from, and what to say when it cannot be.

A folder never touches the network; a hub name goes through the ordinary loading code of Hugging Face.
"""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from relax.errors import UserError


def hub_arguments(name_or_path: str, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """The keywords of ``from_pretrained`` that say where to load from.

    Raises:
        UserError: The name looks like a path, but there is no such folder.
    """
    folder = local_folder(name_or_path)
    if folder is not None and revision is not None:
        warnings.warn(f"--revision={revision} has no effect on the local folder {name_or_path}", stacklevel=3)
    return {
        "pretrained_model_name_or_path": name_or_path if folder is None else str(folder),
        "revision": revision if folder is None else None,
        "trust_remote_code": trust_remote_code,
        "local_files_only": folder is not None,
    }


def local_folder(name_or_path: str) -> Path | None:
    """The folder that is meant (``~`` is understood), or None for what can only be a hub name.

    Raises:
        UserError: The name looks like a path (``./x``, ``/x``, ``x/y/z``), but there is no such folder.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_dir():
        return path
    like_a_path = name_or_path.startswith((".", "/", "~")) or name_or_path.endswith("/") or name_or_path.count("/") > 1
    if path.is_file() or like_a_path or not name_or_path:
        problem = "is a file" if path.is_file() else "does not exist"
        raise UserError(f"the folder '{name_or_path}' {problem}; give an existing folder or a hub name like org/name")
    return None


@contextmanager
def one_line_errors(what: str, name_or_path: str) -> Iterator[None]:
    """Say in one line, and without the library's traceback, why ``what`` cannot be loaded."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError) as error:
        reason = textwrap.shorten(str(error), 400)
        advice = "the folder" if local_folder(name_or_path) else "the name, the connection and the hub login"
        if "trust_remote_code" in str(error):
            advice = "its code, and give --trust_remote_code to run it"
        raise UserError(f"cannot load {what} ({type(error).__name__}: {reason}); check {advice}") from None
