"""What the command line understands of type annotations: which it can check, and how it names them to people.

Not a validator: `relax.cli.values` turns text into values.
"""

import collections.abc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

SCALARS = (int, float, bool, str, Path)
CONTAINERS: dict[Any, type] = {
    list: list,
    tuple: tuple,
    dict: dict,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Mapping: dict,
}
_NAMES: dict[Any, str] = {
    **{scalar: scalar.__name__.lower() for scalar in SCALARS},
    NoneType: "None",
    Any: "any",
    Ellipsis: "...",
}


class Unknown:
    """Stands for a type that cannot be typed in on a command line: a module, a callable, a class of the caller's."""


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def container(annotation: Any) -> type | None:
    """``list``, ``tuple`` or ``dict`` where values of the annotation are given as such, else None."""
    return CONTAINERS.get(get_origin(annotation) or annotation)


def is_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


def checkable(annotation: Any) -> Any:
    """The annotation without the union members that only Python code can pass; ``Any`` if nothing else is left."""
    pruned = _prune(annotation)
    return Any if pruned is Unknown else pruned


def _prune(annotation: Any) -> Any:
    if annotation is Ellipsis:  # of tuple[int, ...]
        return annotation
    kept = [pruned for member in members(annotation) if (pruned := _prune_member(member)) is not Unknown]
    nothing_left = all(member is NoneType for member in kept)
    return Unknown if nothing_left else Union[tuple(kept)]  # noqa: UP007 (built at run time)


def _prune_member(annotation: Any) -> Any:
    if annotation in (*SCALARS, NoneType, Any) or is_literal(annotation):
        return annotation
    kind = container(annotation)
    if kind is None:
        return Unknown
    arguments = tuple(_prune(argument) for argument in get_args(annotation))
    if Unknown in arguments:
        return Unknown
    return kind[arguments] if arguments else kind  # type: ignore[index]


def describe(annotation: Any) -> str:
    """The annotation as the help and the errors show it; the choices of a ``Literal`` in braces."""
    literals = [member for member in members(annotation) if is_literal(member)]
    choices = [str(choice) for literal in literals for choice in get_args(literal)]
    braces = ["{" + ", ".join(dict.fromkeys(choices)) + "}"] if choices else []  # 16 and '16' are typed alike
    return " | ".join(
        [*braces, *(_describe_member(member) for member in members(annotation) if member not in literals)]
    )


def _describe_member(annotation: Any) -> str:
    if annotation in _NAMES:
        return _NAMES[annotation]
    kind = container(annotation)
    assert kind is not None, f"{annotation} is not checkable"
    arguments = [describe(argument) for argument in get_args(annotation)]
    return f"{kind.__name__}[{', '.join(arguments)}]" if arguments else kind.__name__
