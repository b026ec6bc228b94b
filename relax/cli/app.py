"""From ``argv`` to a call of the script's ``main``, or to a help text or a one-line error. Loads nothing heavy."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relax.cli.arguments import COMMAND_LINE, parse_arguments, refuse_unknown
from relax.cli.config import read_config
from relax.cli.flags import Flag, Forwarded, arguments_of, collect_flags
from relax.cli.help import format_help, group_flags
from relax.cli.values import coerce
from relax.cli.yaml12 import Node
from relax.errors import TrainingStopped, UserError

_CONFIG = Flag("config", Path, None, "YAML file of flags; those on the command line win over it.", "General")
_HELP = Flag("help", bool, None, "Show this text and stop.", "General")


def run(
    main: Callable[..., None],
    argv: Sequence[str] | None = None,
    *,
    forwards: Sequence[Forwarded] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Call ``main`` with the flags of ``argv``, checked against its annotations and those of the forwarded classes.

    ``main`` receives the flags that were given; forwarded ones arrive in its ``**kwargs``, and those that are fields of
    a dataclass in an instance of it, wherever a parameter is annotated with one. The flags ``--config`` and
    ``--help`` are added. A `UserError`, from here or from ``main``, is printed in one line and ends the process with
    code 2, a `TrainingStopped` likewise with 1 (with ``RELAX_TRACEBACK=1`` in the environment the traceback is shown
    too); Ctrl-C ends it with 130.

    Args:
        main: the script; its docstring, Google style, is the help.
        argv: the arguments after the program's name; those of the process by default.
        forwards: classes whose parameters are flags too; the first definition of a name wins.
        groups: headings of the help, each with the names of the flags under it; the others follow.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        flags = collect_flags(main, forwards)
        if "--help" in argv or "-h" in argv:
            titled = group_flags(flags, groups or {}) | {_HELP.group: [_CONFIG, _HELP]}
            print(format_help(_program(), main.__doc__, titled))
            return
        main(**arguments_of(main, parse_flags(argv, flags)))
    except (UserError, TrainingStopped) as error:
        if os.environ.get("RELAX_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # ``--help | head``: nobody reads on, and Python's own flush at the end must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def parse_flags(argv: Sequence[str], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """The checked values by flag name: those of ``--config``, under those of the command line.

    Raises:
        UserError: an unknown flag, a value of the wrong type, a required flag that is missing.
    """
    assert _CONFIG.name not in flags, "--config is the command line's own flag"
    given: dict[str, Node] = dict(parse_arguments(argv, {**flags, _CONFIG.name: _CONFIG}))
    sources = dict.fromkeys(given, COMMAND_LINE)
    path = given.pop(_CONFIG.name, None)
    if path is not None:
        from_file = read_config(Path(str(path)).expanduser())
        refuse_unknown(from_file, flags, str(path))
        sources = dict.fromkeys(from_file, str(path)) | sources
        given = from_file | given
    missing = [f"--{flag.name}=..." for flag in flags.values() if flag.required and flag.name not in given]
    if missing:
        raise UserError(f"this script needs {' '.join(missing)}; --help describes its flags")
    return {name: _check(flags[name], node, sources[name]) for name, node in given.items()}


def _check(flag: Flag, node: Node, source: str) -> Any:
    try:
        return coerce(node, flag.type)
    except ValueError as error:
        raise UserError(f"--{flag.name} {error} (from {source})") from error


def _program() -> str:
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name
