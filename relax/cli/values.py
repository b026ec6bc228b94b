"""Turns the text of a flag into a value of its annotation, the same way for the command line and for a file."""

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from relax.cli.annotations import container, describe, is_literal, members
from relax.cli.yaml12 import BOOLS, NULLS, Node, Quoted, looks_structured, parse, plain_value, to_float


def coerce(node: Node, annotation: Any) -> Any:
    """The value that ``node`` stands for under ``annotation``.

    Of a union the narrowest member that takes the text wins: None, the choices of a Literal, int, float, bool, str or
    Path, then list, tuple or dict; these come first for a text with a comma or in brackets.

    Raises:
        ValueError: no member takes it.
    """
    text_wanted = str in members(annotation)
    if isinstance(node, Quoted) and text_wanted:
        return str(node)
    for member in sorted(members(annotation), key=lambda member: _rank(member, node)):
        try:
            return _coerce_member(node, member)
        except ValueError:
            continue
    raise ValueError(f"must be {expected(annotation)}, got {show(node)}")


def expected(annotation: Any) -> str:
    """What a flag takes, for an error message."""
    if annotation is bool:
        return "true or false"
    return f"one of {describe(annotation)}" if is_literal(annotation) else describe(annotation)


def show(node: Node) -> str:
    """A user's text, in quotes and cut to one short line."""
    shown = repr(str(node) if isinstance(node, str) else node)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


_SCALAR_RANKS = (NoneType, int, float, bool, str, Path)


def _rank(member: Any, node: Node) -> int:
    if container(member):
        return -1 if isinstance(node, str) and looks_structured(node) else len(_SCALAR_RANKS)
    if is_literal(member):
        return 0
    return _SCALAR_RANKS.index(member) if member in _SCALAR_RANKS else len(_SCALAR_RANKS) + 1


def _coerce_member(node: Node, annotation: Any) -> Any:
    if annotation is Any:
        return plain_value(_structure(node) if isinstance(node, str) else node)
    if is_literal(annotation):
        return _choose(node, get_args(annotation))
    kind = container(annotation)
    if kind is dict:
        return _to_dict(node, annotation)
    if kind is list:
        (item,) = get_args(annotation) or (Any,)
        return [coerce(element, item) for element in _items(node)]
    if kind is tuple:
        return _to_tuple(node, get_args(annotation) or (Any, ...))
    if not isinstance(node, str):
        raise ValueError("not a single value")
    return _SCALARS[annotation](node)


def _to_none(text: str) -> None:
    if isinstance(text, Quoted) or text not in NULLS:
        raise ValueError("not null")


def _to_bool(text: str) -> bool:
    if text not in BOOLS:
        raise ValueError("neither true nor false")
    return BOOLS[text]


_SCALARS: dict[Any, Callable[[str], Any]] = {
    NoneType: _to_none,
    int: int,
    float: to_float,
    bool: _to_bool,
    str: str,
    Path: lambda text: Path(text).expanduser(),
}


def _choose(node: Node, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if node == str(choice) or (node in NULLS and choice is None):
            return choice
    raise ValueError("not one of the choices")


def _to_tuple(node: Node, annotations: tuple[Any, ...]) -> tuple[Any, ...]:
    items = _items(node)
    if annotations[-1] is Ellipsis:
        annotations = annotations[:1] * len(items)
    return tuple(coerce(item, annotation) for item, annotation in zip(items, annotations, strict=True))


def _to_dict(node: Node, annotation: Any) -> dict[Any, Any]:
    mapping = _structure(node) if isinstance(node, str) else node
    if not isinstance(mapping, dict):
        raise ValueError("not a mapping")
    key_type, value_type = get_args(annotation) or (str, Any)
    return {coerce(key, key_type): coerce(value, value_type) for key, value in mapping.items()}


def _items(node: Node) -> list[Node]:
    """The elements of a list: a list, a text in brackets, or a text with commas between them."""
    structure = _structure(node) if isinstance(node, str) else node
    if isinstance(structure, list):
        return structure
    if isinstance(structure, dict):
        return [structure]
    return [item for item in map(str.strip, structure.split(",")) if item]


def _structure(text: str) -> Node:
    """What a text in brackets stands for; any other text as it is."""
    brackets = (text[:1], text[-1:])
    if brackets == ("(", ")"):
        text = f"[{text[1:-1]}]"
    elif brackets not in (("[", "]"), ("{", "}")):
        return text
    structure = parse(text)
    assert structure is not None  # brackets are not empty
    return structure
