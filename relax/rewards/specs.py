"""Reads ``--rewards``: which functions, with what arguments and weights. Loads and builds nothing.

On the command line ``name[=argument][:weight]``, several by commas: ``math:1.0,format:0.2,soft_overlong=512``,
``experiments.scores.politeness:0.5``, ``http=https://host/score``. In a config file each may be a mapping with
``class_path`` (a name or dotted path), ``init_args``, ``weight``, ``name``, ``isolated`` and ``time_limit_seconds``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from relax import checks
from relax.checks import nearest
from relax.errors import UserError

Function: TypeAlias = Callable[..., Any]
Entry: TypeAlias = str | Function | tuple[Function | str, float] | Mapping[str, Any]

_KEYS = ("class_path", "init_args", "weight", "name", "isolated", "time_limit_seconds")


@dataclass(frozen=True)
class Spec:
    """One entry of ``--rewards``. ``argument`` is what follows ``=``: the first that the class takes, still as text.

    ``isolated`` (in worker processes) and ``time_limit_seconds`` (for one call, inf for none): None is as usual for it.
    """

    source: str | Function
    weight: float = 1.0
    name: str | None = None
    argument: str | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)
    isolated: bool | None = None
    time_limit_seconds: float | None = None


def read_specs(rewards: Entry | Sequence[Entry]) -> list[Spec]:
    """The entries of ``rewards``: text, functions, pairs of a function and a weight, mappings, or a list of those.

    Raises:
        UserError: there is none, one of another form, or a weight that is no finite number.
    """
    entries = _as_list(rewards)
    parts = [part for entry in entries for part in (entry.split(",") if isinstance(entry, str) else [entry])]
    specs = [_read_entry(part) for part in parts]
    if not specs:
        raise UserError("--rewards needs at least one reward function, got an empty list; for example --rewards=exact")
    for spec in specs:
        if not math.isfinite(spec.weight):
            raise UserError(f"--rewards: the weight of {spec.source} must be a finite number, got {spec.weight}")
    if all(spec.weight == 0 for spec in specs):
        raise UserError("--rewards: all weights are 0, so that every completion would score the same; raise one")
    return specs


def _as_list(rewards: Entry | Sequence[Entry]) -> list[Entry]:
    """A tuple whose second part is a number is one entry: a function with its weight."""
    pair = isinstance(rewards, tuple) and len(rewards) == 2 and isinstance(rewards[1], (int, float))
    if pair or isinstance(rewards, str) or not isinstance(rewards, Sequence):
        return [cast(Entry, rewards)]
    return list(cast(Sequence[Entry], rewards))


def _read_entry(entry: Entry) -> Spec:
    if isinstance(entry, str):
        text, weight = split_weight(entry.strip())
        name, equals, argument = text.partition("=")
        return Spec(name.strip(), weight=weight, argument=argument if equals else None)
    if isinstance(entry, tuple):
        source, weight = entry
        return Spec(source, weight=float(weight))
    if isinstance(entry, Mapping):
        return _read_mapping(entry)
    if not callable(entry):
        raise UserError(f"--rewards: an entry is a name, a dotted path, a function or a mapping, got {entry!r}")
    return Spec(entry)


def _read_mapping(entry: Mapping[str, Any]) -> Spec:
    for key in entry:
        if key not in _KEYS:
            raise UserError(
                f"--rewards: {key!r} is not a key of a reward{nearest(str(key), _KEYS)}; it may have {_KEYS}"
            )
    source, arguments, weight = entry.get("class_path"), entry.get("init_args") or {}, entry.get("weight", 1.0)
    valid = (isinstance(source, str) or callable(source)) and isinstance(arguments, Mapping)
    if not valid or not isinstance(weight, (int, float)):
        raise UserError(
            "--rewards: a mapping holds class_path (a name or dotted path), and may hold init_args (a mapping) and "
            f"weight (a number), got {dict(entry)!r}"
        )
    assert source is not None
    limit = entry.get("time_limit_seconds")
    checks.positive(time_limit_seconds=None if limit == math.inf else limit)
    others = {key: entry[key] for key in ("name", "isolated", "time_limit_seconds") if key in entry}
    return Spec(source, float(weight), init_args=arguments, **others)


def split_weight(text: str) -> tuple[str, float]:
    """``math:0.5`` -> ``math``, 0.5. A number that ends an address without a path is its port.

    Raises:
        UserError: what follows the colon is no number.
    """
    head, colon, tail = text.rpartition(":")
    address = head.partition("://")[2]
    if not colon or tail.startswith("//") or ("://" in head and "/" not in address):
        return text, 1.0
    try:
        return head, float(tail)
    except ValueError:
        if "://" in head:
            return text, 1.0
        raise UserError(f"--rewards={text}: the weight behind the colon must be a number, got {tail!r}") from None
