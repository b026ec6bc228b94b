"""Text files of a run with one JSON object a line, each with its ``step``: what a resumed run does with such a file."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

from relax.atomic_file import atomic_write
from relax.errors import storage_error


def append(path: Path, lines: Iterable[str]) -> None:
    """Add ``lines``; the folder is made if need be.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise storage_error(path, error) from error


def take_over(path: Path, step: int, *, resumed: bool, what: str) -> list[str]:
    """The lines of the run up to ``step``, where it starts; later ones, which it will write again, are removed.

    A file of another run is renamed to ``*.old``, with a warning.

    Args:
        path: the file; it need not exist.
        step: optimizer steps done.
        resumed: whether the run continues the one that wrote the file.
        what: what the file holds, for the warning.

    Raises:
        UserError: the file cannot be written.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""  # a kill may halve a character
    if text and not resumed:
        old = path.with_name(f"{path.name}.old")
        path.rename(old)
        warnings.warn(f"{path} held the {what} of another run: renamed to {old.name}", stacklevel=3)
        return []
    kept = [line for line in text.split("\n") if line and step_of(line) <= step]
    rest = "".join(f"{line}\n" for line in kept)
    if rest != text:
        with atomic_write(path) as file:
            file.write(rest.encode())
    return kept


def step_of(line: str) -> float:
    """The step of a line; infinite for one that a killed writer left incomplete."""
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return float("inf")
