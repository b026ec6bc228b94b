"""Configuration files: a YAML mapping from flag names to values, the same that the command line takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relax.atomic_file import atomic_write
from relax.cli.yaml12 import Node, YamlError, dump, parse
from relax.errors import UserError


def read_config(path: Path) -> dict[str, Node]:
    """The flags that a file gives, their values still text.

    Raises:
        UserError: the file is missing, unreadable, broken (with its line), empty, or not a mapping.
    """
    try:
        node = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config={path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except YamlError as error:
        where = "" if error.line is None else f", line {error.line}"
        raise UserError(f"--config={path}{where} is not valid YAML: {error}") from error
    if not isinstance(node, dict):
        found = "nothing" if node is None else "a list" if isinstance(node, list) else f"only the text {node!r}"
        raise UserError(f"--config={path} must hold lines such as 'learning_rate: 1e-5'; it holds {found}")
    return node


def dump_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` (flag name to value) as a file that ``--config`` accepts back with equal values.

    Inside a script's ``main``, its first line ``settings = dict(locals())`` and ``settings |=
    settings.pop("trainer_flags")`` collect what the run was given. Values are numbers, strings, booleans, None, paths
    and lists, tuples and mappings of them.

    Raises:
        UserError: the file cannot be written.
        yaml.representer.RepresenterError: a value is an object of another kind.
    """
    with atomic_write(path) as file:
        file.write(dump(dict(values)).encode())
