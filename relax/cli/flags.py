"""Which flags there are: the parameters of the script's ``main``, then those of the classes it forwards to.

A parameter of ``main`` that is annotated with a dataclass stands for a bundle of flags, the dataclass's fields, which
several scripts can share; ``main`` receives an instance. Knows nothing of the values a user typed.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from itertools import chain
from typing import Any, get_type_hints

from relax.cli.annotations import checkable, members
from relax.cli.docstrings import describe_arguments
from relax.cli.sources import read_module, resolve

SCRIPT = "Script"
_SENTENCE_END = re.compile(r"(?<=\.) +(?=[A-Z])")


@dataclass(frozen=True)
class Flag:
    """One flag: its checkable type, its default as shown to people (None: it has none), the group it is listed in."""

    name: str
    type: Any
    default: str | None
    description: str
    group: str
    required: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether ``--name`` and ``--noname`` may stand without a value."""
        return bool in members(self.type)


@dataclass(frozen=True)
class Forwarded:
    """A class whose constructor parameters are flags too, named by its module so that it need not be imported.

    Args:
        title: heading of its group in the help.
        module: dotted name of the module that defines the class.
        cls: name of the class.
        without: parameters that are not flags, because the script gives them.
        brief: show only the first two sentences of each description.
    """

    title: str
    module: str
    cls: str
    without: tuple[str, ...] = ()
    brief: bool = False


def collect_flags(main: Callable[..., None], forwards: Iterable[Forwarded] = ()) -> dict[str, Flag]:
    """All flags by name. The first definition of a name wins; a later one may lend it a description.

    Raises:
        UserError: a package that a forwarded class comes from is not installed.
    """
    flags: dict[str, Flag] = {}
    for flag in chain(script_flags(main), *map(class_flags, forwards)):
        known = flags.get(flag.name)
        if known is None:
            flags[flag.name] = flag
        elif not known.description:
            flags[flag.name] = replace(known, description=flag.description)
    return flags


def script_flags(main: Callable[..., None]) -> Iterator[Flag]:
    """The parameters of ``main``, bundles unpacked; its ``**flags``, which receive the forwarded ones, left out."""
    descriptions = describe_arguments(main.__doc__)
    for name, parameter in inspect.signature(main, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if is_dataclass(parameter.annotation):
            yield from bundle_flags(parameter.annotation)
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else str(parameter.default)
        annotation = checkable(parameter.annotation)
        yield Flag(name, annotation, default, descriptions.get(name, ""), SCRIPT, required)


def bundle_flags(bundle: Any) -> Iterator[Flag]:
    """The fields of a dataclass, described by the ``Args`` of its docstring."""
    descriptions, annotations = describe_arguments(bundle.__doc__), get_type_hints(bundle)
    for field in fields(bundle):
        required = field.default is MISSING
        default = None if required else str(field.default)
        annotation = checkable(annotations[field.name])
        yield Flag(field.name, annotation, default, descriptions.get(field.name, ""), SCRIPT, required)


def arguments_of(main: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``main`` is called with, given the values by flag: those of a bundle in an instance of it."""
    parameters = inspect.signature(main, eval_str=True).parameters
    bundles: dict[str, Any] = {name: p.annotation for name, p in parameters.items() if is_dataclass(p.annotation)}
    bundled = {name: {field.name for field in fields(bundle)} for name, bundle in bundles.items()}
    arguments = {name: value for name, value in values.items() if name not in set().union(*bundled.values())}
    for name, bundle in bundles.items():
        arguments[name] = bundle(**{flag: values[flag] for flag in bundled[name] & values.keys()})
    return arguments


def class_flags(forwarded: Forwarded) -> Iterator[Flag]:
    """The parameters of the class's own ``__init__``, none of them required: the script may give them."""
    module = read_module(forwarded.module)
    definition = module.classes[forwarded.cls]
    init = _own_init(definition)
    descriptions = {
        **describe_arguments(ast.get_docstring(definition)),
        **describe_arguments(ast.get_docstring(init)),
    }
    for argument, default in _parameters(init.args):
        if argument.arg in forwarded.without:
            continue
        annotation = checkable(resolve(argument.annotation, module)) if argument.annotation else Any
        description = descriptions.get(argument.arg, "")
        if forwarded.brief:
            description = " ".join(_SENTENCE_END.split(description)[:2])
        shown = None if default is None else ast.unparse(default).strip("'")
        yield Flag(argument.arg, annotation, shown, description, forwarded.title)


def _own_init(definition: ast.ClassDef) -> ast.FunctionDef:
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return statement
    raise LookupError(f"{definition.name} has no __init__ of its own: forward to the class that defines it")


def _parameters(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    without_default = len(positional) - len(arguments.defaults)
    defaults = [*[None] * without_default, *arguments.defaults]
    yield from list(zip(positional, defaults, strict=True))[1:]  # self
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
