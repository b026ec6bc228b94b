"""From the entries of ``--rewards`` to functions that are ready to be called: finds, builds and checks them."""

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

from relax.checks import nearest
from relax.cli.annotations import checkable
from relax.cli.values import coerce
from relax.errors import UserError
from relax.plugins import load_object
from relax.rewards.adapter_reward import AdapterReward
from relax.rewards.binding import read_signature
from relax.rewards.builtin import BUILT_IN, BuiltIn
from relax.rewards.evaluation import Reward
from relax.rewards.reward_model import RewardModel
from relax.rewards.specs import Entry, Spec, read_specs


def build_functions(
    rewards: Entry | Sequence[Entry], *, time_limit_seconds: float | None, isolate_own: bool
) -> list[Reward]:
    """Every entry of ``rewards`` as a `Reward`, in order.

    Raises:
        UserError: an entry that cannot be read, found, or built with its arguments, or a name that comes twice.
    """
    specs = read_specs(rewards)
    own = BuiltIn(lambda: None, time_limit_seconds=time_limit_seconds, isolated=isolate_own)
    built = [_build(spec, own) for spec in specs]
    name, count = Counter(reward.name for reward in built).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"--rewards names {name!r} {count} times; give each its own name, as mappings with the key name"
        )
    return built


def _build(spec: Spec, own: BuiltIn) -> Reward:
    made, known = _find(spec.source)
    run = known or own
    name = spec.name or _name_of(spec.source)
    function = _make(made, spec, name)
    signature = read_signature(function, name)
    limit = spec.time_limit_seconds or run.time_limit_seconds
    if spec.isolated and signature.is_async:
        warnings.warn(f"isolated has no effect on the reward {name!r}: async functions run here", stacklevel=4)
    return Reward(
        name=name,
        function=function,
        signature=signature,
        weight=spec.weight,
        time_limit_seconds=None if limit == math.inf else limit,
        isolated=(run.isolated if spec.isolated is None else spec.isolated) and not signature.is_async,
        score_over_limit=run.score_over_limit,
    )


def _find(source: str | Callable[..., Any]) -> tuple[Callable[..., Any], BuiltIn | None]:
    """The function or class, and how it is run if it is one of ours."""
    if not isinstance(source, str):
        return source, BUILT_IN["model"] if isinstance(source, (RewardModel, AdapterReward)) else None
    if source in BUILT_IN:
        return BUILT_IN[source].make, BUILT_IN[source]
    if "." not in source:
        raise UserError(
            f"--rewards: there is no reward {source!r}{nearest(source, BUILT_IN)}; it may be one of "
            f"{', '.join(BUILT_IN)}, or your own as package.module.function"
        )
    found = load_object(source)
    if not callable(found):
        raise UserError(f"--rewards: {source} is not a function or class, but {type(found).__name__}")
    return found, None


def _make(made: Callable[..., Any], spec: Spec, name: str) -> Callable[..., Any]:
    """A class is built with the entry's arguments; a function is taken as it is."""
    arguments = dict(spec.init_args)
    if not inspect.isclass(made):
        if arguments or spec.argument is not None:
            raise UserError(f"--rewards: {name} is a function and takes no arguments of its own; drop them")
        return made
    signature = inspect.signature(made)
    if spec.argument is not None:
        arguments |= _first_argument(signature, spec.argument, name)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "no arguments"
        raise UserError(f"--rewards: {name}: {error}; its init_args may be: {accepted}") from error
    function: Any = made(**arguments)
    if not callable(function):
        raise UserError(f"--rewards: {name} is a class without __call__, so it cannot score anything")
    return cast(Callable[..., Any], function)


def _first_argument(signature: inspect.Signature, text: str, name: str) -> dict[str, Any]:
    if not signature.parameters:
        raise UserError(f"--rewards: {name} takes no argument, got {text!r} behind the =")
    first = next(iter(signature.parameters.values()))
    try:
        return {first.name: coerce(text, checkable(first.annotation))}
    except ValueError as error:
        raise UserError(f"--rewards: {first.name} of {name} {error}") from None


def _name_of(source: str | Callable[..., Any]) -> str:
    if isinstance(source, str):
        return source.rpartition(".")[2]
    named = inspect.isroutine(source) or inspect.isclass(source)
    return str(source.__name__) if named else type(source).__name__
