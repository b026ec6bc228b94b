"""Reads Google-style docstrings: the sections, the description of each argument. Knows no other style."""

import inspect
import re

_SECTION = re.compile(r"^(Args|Arguments|Attributes|Examples?|Notes?|Raises|Returns|Yields):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)(?: \([^)]*\))?:[ \t]*", re.MULTILINE)
_ROLE = re.compile(r":[\w:]+:`~?(?:[^`]*\.)?([^`]+)`")
_CODE = re.compile(r"`{1,2}([^`]*)`{1,2}")


def sections(docstring: str | None) -> dict[str, str]:
    """Text by section name, dedented; the text before the first section under the empty name."""
    before, *parts = _SECTION.split(inspect.cleandoc(docstring or ""))
    titles, bodies = parts[0::2], parts[1::2]
    found = {title: _dedent(body) for title, body in zip(titles, bodies, strict=True)}
    return {"": before.strip(), **found}


def describe_arguments(docstring: str | None) -> dict[str, str]:
    """One line of plain text for each argument of the ``Args:`` section."""
    body = sections(docstring).get("Args", "")
    _, *parts = _ARGUMENT.split(body)
    return {name: plain(text) for name, text in zip(parts[0::2], parts[1::2], strict=True)}


def plain(text: str) -> str:
    """The text on one line, without reStructuredText marks."""
    return " ".join(_CODE.sub(r"\1", _ROLE.sub(r"\1", text)).split())


def _dedent(body: str) -> str:
    """The indented lines that follow a section title; what stands at the margin again belongs to no section."""
    indented = re.match(r"(?:[ \t]+\S.*(?:\n|$)|[ \t]*(?:\n|$))*", body.lstrip("\n"))
    assert indented is not None
    return inspect.cleandoc("\n" + indented.group())
