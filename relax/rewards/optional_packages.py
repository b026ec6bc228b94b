"""Packages that only some rewards need: looked for when such a reward is built, imported when it is first used."""

import importlib
import importlib.util
from typing import Any

from relax.errors import UserError


def require(module: str, package: str, reward: str) -> None:
    """Raise a ``UserError`` that says what to install, if ``module`` is not there; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"the reward {reward!r} needs {package}, which is not installed: pip install '{package}'")


def load(module: str) -> Any:
    """Import a module that is known to be there; it may have no types."""
    return importlib.import_module(module)
