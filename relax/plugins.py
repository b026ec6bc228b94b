"""Loads a user's own classes by dotted path: ``--callbacks=experiments.noise.NoiseScale``.

Importing runs the user's code: only paths that the user typed come here, never one found in a checkpoint.
"""

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from relax.checks import nearest
from relax.errors import UserError

_SPEC_KEYS = ("class_path", "init_args")


def load_object(path: str) -> Any:
    """Import ``package.module.name``, looking in the current directory too, as for a script that lies there.

    Raises:
        UserError: the path has no dot, or its module or attribute does not exist (with the nearest one that does). An
            error inside the user's module is not caught, but for a module that it imports and that is missing.
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{path!r} is not a dotted path: write it as package.module.Name")
    module = _import(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise UserError(_explain_missing(attribute, module)) from error


def build_callbacks(specs: Sequence[str | Mapping[str, Any]]) -> list[Any]:
    """Build each callback of ``--callbacks``: a dotted path, or a mapping with ``class_path`` and ``init_args``.

    Raises:
        UserError: a spec of another form, a path that does not lead to a Lightning callback class, or arguments that
            its constructor does not take. Errors raised inside the constructor are not caught.
    """
    return [_build_callback(spec) for spec in specs]


def _build_callback(spec: str | Mapping[str, Any]) -> Any:
    from lightning.pytorch import Callback

    path, arguments = _read_spec(spec)
    cls = load_object(path)
    if not (inspect.isclass(cls) and issubclass(cls, Callback)):
        raise UserError(f"--callbacks: {path} is not a class derived from lightning.pytorch.Callback, but {cls!r}")
    signature = inspect.signature(cls)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "no arguments"
        raise UserError(f"--callbacks: {path} {error}; its init_args may be: {accepted}") from error
    return cls(**arguments)


def _read_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    path, arguments = spec.get("class_path"), spec.get("init_args") or {}
    if not isinstance(path, str) or not isinstance(arguments, Mapping) or not spec.keys() <= set(_SPEC_KEYS):
        raise UserError(
            "--callbacks: a callback is a dotted path or a mapping {class_path: package.module.Name, init_args: {...}},"
            f" got {dict(spec)!r}"
        )
    return path, dict(arguments)


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a folder of the user's called `datasets` hides no installed package
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise UserError(f"{name} imports {missing!r}, which is not installed") from error
        parent = missing.rpartition(".")[0]
        beside = _modules_in(_search_path(parent) if parent else [here])
        prefix = f"{parent}." if parent else ""
        advice = nearest(missing.removeprefix(prefix), beside, prefix)
        raise UserError(f"there is no module {missing!r} in {parent or here}{advice}") from error


def _explain_missing(attribute: str, module: ModuleType) -> str:
    modules = _modules_in(_search_path(module.__name__))
    if attribute in modules:
        return f"{module.__name__}.{attribute} is a module: add the name of what it defines"
    names = [*_public_names(module), *modules]
    what = f"it has {', '.join(names[:12])}" if names else "it is empty"
    return f"{module.__name__} has no {attribute!r}{nearest(attribute, names)}; {what}"


def _search_path(package: str) -> list[str]:
    spec = sys.modules[package].__spec__
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _modules_in(folders: Iterable[str]) -> list[str]:
    entries = (entry for folder in folders for entry in Path(folder).iterdir())
    return sorted(entry.stem for entry in entries if entry.suffix == ".py" or entry.is_dir())


def _public_names(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    ]
