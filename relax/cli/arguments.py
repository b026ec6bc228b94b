"""The command line as fire reads it, made strict: every token is a known flag, given once, with its value as raw text.

Fire alone runs the job and complains afterwards, guesses types (``1e5`` becomes a number), and takes positional
arguments. So unknown and repeated flags are refused here before it parses, and it parses into a function that only
notes what it is given.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from relax.checks import nearest_setting
from relax.cli.flags import Flag
from relax.errors import UserError

COMMAND_LINE = "the command line"
_FLAG = re.compile(r"--|-[a-zA-Z]")  # as fire has it: -1 is a value


def parse_arguments(argv: Sequence[str], flags: Mapping[str, Flag]) -> dict[str, str]:
    """Raw text by flag name; ``--flag`` gives 'True' and ``--noflag`` 'False' for switches.

    Raises:
        UserError: a token that is not a known flag or its value, a flag given twice or without its value.
    """
    seen: set[str] = set()
    for token, following in zip_longest(argv, argv[1:]):
        if token in ("-", "--"):
            raise UserError(f"stray {token} on {COMMAND_LINE}; settings are given as --name=value")
        if not _FLAG.match(token):
            continue
        alone = "=" not in token and (following is None or _FLAG.match(following) is not None)
        name = _check_token(token, alone, flags)
        if name in seen:
            raise UserError(f"--{name} is given twice on {COMMAND_LINE}; give it once")
        seen.add(name)
    return _parse_with_fire(argv, flags)


def refuse_unknown(names: Iterable[str], flags: Mapping[str, Flag], source: str) -> None:
    """Raise a UserError for the first name that is no flag, with the flag that was probably meant."""
    for name in names:
        if name in flags:
            continue
        switches = [f"no{flag.name}" for flag in flags.values() if flag.is_switch]
        advice = nearest_setting(name, [*flags, *switches], "--") or "; --help lists them all"
        raise UserError(f"unknown flag --{name} (from {source}){advice}")


def _check_token(token: str, alone: bool, flags: Mapping[str, Flag]) -> str:
    """The name of the flag that a token sets."""
    if not token.startswith("--"):
        raise UserError(f"unknown flag {token} (from {COMMAND_LINE}); flags are written --name=value")
    name = token[2:].partition("=")[0].replace("-", "_")
    if alone and name not in flags and name.startswith("no"):
        positive = flags.get(name[2:])
        if positive is not None and positive.is_switch:
            return positive.name
    refuse_unknown([name], flags, COMMAND_LINE)
    if alone and not flags[name].is_switch:
        raise UserError(f"--{name} needs a value: --{name}=...")
    return name


def _parse_with_fire(argv: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    from fire import Fire
    from fire.decorators import SetParseFn

    received: dict[str, str] = {}
    stray: list[str] = []

    def note(*extra: str, **given: str) -> None:
        stray.extend(extra)
        received.update(given)

    keyword_only = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    extra = inspect.Parameter("extra", inspect.Parameter.VAR_POSITIONAL)
    note.__signature__ = inspect.Signature([extra, *keyword_only])  # type: ignore[attr-defined]
    Fire(SetParseFn(str)(note), command=list(argv))
    if stray:
        raise UserError(f"unexpected {stray[0]!r} on {COMMAND_LINE}; settings are given as --name=value")
    return received
