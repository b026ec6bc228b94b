"""Rules on single settings: each names the flag, the value received and what is allowed."""

import difflib
import math
from collections.abc import Collection

from relax.errors import UserError
from relax.other_names import OTHER_NAMES


def positive(**settings: float | None) -> None:
    """Every given value is a finite number above 0; None passes."""
    for name, value in settings.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name} must be above 0, got {value}")


def between(low: float, high: float, **settings: float | None) -> None:
    """Every given value lies in [low, high]; None passes."""
    for name, value in settings.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} must lie between {low:g} and {high:g}, got {value}")


def one_of(choices: Collection[str], **settings: str) -> None:
    """Every value is one of ``choices``; the nearest one is named."""
    for name, value in settings.items():
        if value not in choices:
            raise UserError(
                f"--{name} must be one of {', '.join(sorted(choices))}, got {value}{nearest(value, choices)}"
            )


def not_both(**settings: object) -> None:
    """At most one of the settings is given (neither None nor False)."""
    given = [f"--{name}={value}" for name, value in settings.items() if value is not None and value is not False]
    if len(given) > 1:
        raise UserError(f"only one of {' and '.join(given)} can be given; leave one out")


def nearest(word: str, choices: Collection[str], prefix: str = "") -> str:
    """``; did you mean X?`` for the choice most like ``word``, or nothing."""
    found = difflib.get_close_matches(word, list(choices), 1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def nearest_setting(name: str, settings: Collection[str], prefix: str = "") -> str:
    """The same for the name of a setting: what other systems call ``name``, or the one most like it."""
    known = next((ours for ours, theirs in OTHER_NAMES.items() if name in theirs and ours in settings), None)
    return nearest(name, settings, prefix) if known is None else f"; did you mean {prefix}{known}?"
