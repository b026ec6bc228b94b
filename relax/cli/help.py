"""Prints ``--help``: what the script is for, its examples, and its flags in groups. Plain text, to page and to grep."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from relax.cli.annotations import describe
from relax.cli.docstrings import sections
from relax.cli.flags import Flag

_MAX_WIDTH = 110


def format_help(program: str, docstring: str | None, groups: Mapping[str, Sequence[Flag]]) -> str:
    """The whole help text, wrapped to the terminal; empty groups are left out."""
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    found = sections(docstring)
    parts = [f"Usage: {program} [--flag=value ...] [--config=file.yaml]", found[""]]
    for title in ("Example", "Examples"):
        if title in found:
            parts.append(f"{title}:\n{textwrap.indent(found[title], '  ')}")
    parts += [_format_group(title, flags, width) for title, flags in groups.items() if flags]
    return "\n\n".join(part for part in parts if part)


def group_flags(flags: Mapping[str, Flag], groups: Mapping[str, Sequence[str]]) -> dict[str, list[Flag]]:
    """The flags by heading: first the groups the script names, then its other flags and those of each class."""
    listed = {name for names in groups.values() for name in names}
    assert listed <= flags.keys(), f"groups name flags that do not exist: {sorted(listed - flags.keys())}"
    grouped = {title: [flags[name] for name in names] for title, names in groups.items()}
    for flag in flags.values():
        if flag.name not in listed:
            grouped.setdefault(flag.group, []).append(flag)
    return grouped


def _format_group(title: str, flags: Sequence[Flag], width: int) -> str:
    return "\n".join([f"{title}:", *(line for flag in flags for line in _format_flag(flag, width))])


def _format_flag(flag: Flag, width: int) -> Iterator[str]:
    ending = "  (required)" if flag.required else "" if flag.default is None else f"  (default: {flag.default})"
    heading = f"--{flag.name}  {describe(flag.type)}{ending}"
    yield from textwrap.wrap(heading, width, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
    yield from textwrap.wrap(flag.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
