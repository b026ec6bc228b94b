"""Reads classes and type aliases from source files: importing lightning to print a help text would take seconds.

Nothing is executed. A name that leads outside the packages below, or to a class, is an `Unknown` type.
"""

import ast
import collections.abc
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Optional, Union

from relax.cli.annotations import Unknown
from relax.errors import UserError

_FOLLOWED = ("relax", "trainers", "callbacks", "lightning")  # where aliases may be imported from; torch is slow to read
_KNOWN: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, str, bool, list, tuple, dict, Path)},
    "Any": Any,
    "List": list,
    "Tuple": tuple,
    "Dict": dict,
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
    "Sequence": collections.abc.Sequence,
    "Iterable": collections.abc.Iterable,
    "Collection": collections.abc.Collection,
    "Mapping": collections.abc.Mapping,
}
_TYPING_MODULES = ("typing", "pathlib", "collections.abc")


@dataclass(frozen=True)
class SourceModule:
    """The top-level names of a source file."""

    name: str
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    aliases: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)  # local name -> (module, name there)


@cache
def read_module(name: str) -> SourceModule:
    """Parse the source of a module without importing it or its packages.

    Raises:
        UserError: its top-level package is not installed, or has no such module.
    """
    module = SourceModule(name)
    tree = ast.parse(_find_source(name).read_text(encoding="utf-8"))
    for statement in _top_level(tree.body):
        match statement:
            case ast.ClassDef(name=defined):
                module.classes[defined] = statement
            case ast.Assign(targets=[ast.Name(id=alias)], value=value):
                module.aliases[alias] = value
            case ast.AnnAssign(target=ast.Name(id=alias), value=ast.expr() as value):
                module.aliases[alias] = value
            case ast.ImportFrom(module=str() as origin, names=names, level=0):
                module.imports.update({name.asname or name.name: (origin, name.name) for name in names})
    return module


def resolve(node: ast.expr, module: SourceModule) -> Any:
    """The type that an annotation of ``module`` stands for, `Unknown` where only importing would tell."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str() as quoted):
            return resolve(ast.parse(quoted, mode="eval").body, module)
        case ast.Constant(value=value):
            return value  # the ... of tuple[int, ...]
        case ast.Name(id=name):
            return _KNOWN[name] if name in _KNOWN else _look_up(name, module)
        case ast.Attribute(value=prefix, attr=name) if ast.unparse(prefix) in _TYPING_MODULES:
            return _KNOWN.get(name, Unknown)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[resolve(left, module), resolve(right, module)]  # noqa: UP007 (built at run time)
        case ast.Subscript(value=head, slice=index):
            elements = index.elts if isinstance(index, ast.Tuple) else [index]
            return _subscript(resolve(head, module), elements, module)
    return Unknown


def _subscript(origin: Any, elements: list[ast.expr], module: SourceModule) -> Any:
    if origin is Unknown:
        return Unknown
    if origin is Literal:
        return Literal[tuple(ast.literal_eval(element) for element in elements)]
    arguments = [resolve(element, module) for element in elements]
    return origin[arguments[0] if len(arguments) == 1 else tuple(arguments)]


def _look_up(name: str, module: SourceModule) -> Any:
    if name in module.aliases:
        return resolve(module.aliases[name], module)
    origin, original = module.imports.get(name, ("", ""))
    if origin.partition(".")[0] not in _FOLLOWED:
        return Unknown
    return _look_up(original, read_module(origin))


def _find_source(name: str) -> Path:
    package, *inside = name.split(".")
    spec = importlib.util.find_spec(package)  # of the top-level package only: deeper ones would import their parents
    if spec is None:
        raise UserError(f"the package {package} is not installed")
    folders = spec.submodule_search_locations or ()
    bases = [Path(folder, *inside) for folder in folders]
    candidates = [path for base in bases for path in (base / "__init__.py", base.with_name(f"{base.name}.py"))]
    if not inside and spec.origin is not None:
        candidates.append(Path(spec.origin))
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"the package {package} has no module {name}: is its version supported?")


def _top_level(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if TYPE_CHECKING`` and ``try`` included."""
    for statement in statements:
        if isinstance(statement, ast.If | ast.Try):
            yield from _top_level(statement.body)
        else:
            yield statement
