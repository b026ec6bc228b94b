"""The audit in a run's folder: for a person as text, for a program as JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from relax.atomic_file import atomic_write
from relax.data.audit.advice import warnings_of
from relax.data.audit.figures import Audit
from relax.data.audit.text import audit_lines

JSON_FILE = "data_audit.json"
TEXT_FILE = "data_audit.txt"


def save_audit(audit: Audit, folder: Path) -> None:
    """Write ``data_audit.json`` (the figures and the warnings) and ``data_audit.txt`` (what was printed).

    Raises:
        UserError: the folder cannot be written.
    """
    figures = asdict(audit) | {"warnings": warnings_of(audit)}
    with atomic_write(folder / JSON_FILE) as file:
        file.write(json.dumps(figures, indent=1).encode() + b"\n")
    with atomic_write(folder / TEXT_FILE) as file:
        file.write("".join(f"{line}\n" for line in audit_lines(audit)).encode(errors="backslashreplace"))
