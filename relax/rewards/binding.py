"""How a function asks for what it scores: by the names of its parameters. Calls nothing.

Four forms, plain or ``async``:

    def reward(completion, answer): ...              # one completion a call: -> a number, or None
    def reward(completions, answer): ...             # all in one call, every argument a list: -> a list of them

``prompt`` (``prompts``), ``completion_ids`` and ``truncated`` can be asked for too; every other parameter is a column
of the row. Functions written for TRL (``completions, **columns``) fit as they are, if they take completions as text.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from relax.checks import nearest
from relax.data.examples import Row
from relax.errors import UserError
from relax.rewards.samples import Sample

TRL_ARGUMENTS = ("trainer_state", "log_extra", "log_metric")
"""What TRL hands to its reward functions beside columns."""
_OF_SAMPLE: dict[str, Callable[[Sample], Any]] = {
    "completion_ids": lambda sample: sample.completion_ids,
    "truncated": lambda sample: sample.truncated,
}
_ONE = _OF_SAMPLE | {"prompt": lambda sample: sample.prompt, "completion": lambda sample: sample.completion}
_MANY = _OF_SAMPLE | {"prompts": lambda sample: sample.prompt, "completions": lambda sample: sample.completion}


@dataclass(frozen=True)
class Signature:
    """What a function takes: ``given`` are our names, ``required`` and ``optional`` columns of the row."""

    batched: bool
    is_async: bool
    given: tuple[str, ...]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    any_column: bool

    def fits(self, row: Row) -> bool:
        """Whether the row has every column that is needed; a function does not apply to a row without."""
        return all(row.get(name) is not None for name in self.required)

    def arguments(self, sample: Sample) -> dict[str, Any]:
        """The keywords for one sample (not for a batched function)."""
        columns = self._columns(sample.row)
        return {name: sample.row[name] for name in columns} | {name: _ONE[name](sample) for name in self.given}

    def batch_arguments(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """The keywords for all samples at once; None where a row lacks a column that another one has."""
        columns = dict.fromkeys(name for sample in samples for name in self._columns(sample.row))
        lists = {name: [sample.row.get(name) for sample in samples] for name in columns}
        return lists | {name: [_MANY[name](sample) for sample in samples] for name in self.given}

    def _columns(self, row: Row) -> Iterable[str]:
        if not self.any_column:
            return [name for name in (*self.required, *self.optional) if name in row]
        hidden = _MANY if self.batched else _ONE
        return [name for name in row if name not in hidden]

    def check_columns(self, name: str, columns: Collection[str]) -> None:
        """Raise a ``UserError`` if the data have not all ``columns`` that the function ``name`` needs."""
        for column in self.required:
            if column not in columns and column in TRL_ARGUMENTS:
                raise UserError(
                    f"reward {name!r} asks for {column}, which TRL passes and ReLax does not; drop it, or give it a "
                    "default"
                )
            if column not in columns:
                raise UserError(
                    f"reward {name!r} needs the column {column!r}, and the data have {', '.join(sorted(columns))}"
                    f"{nearest(column, columns)}; give it another name with --columns"
                )


def read_signature(function: Callable[..., Any], name: str) -> Signature:
    """The parameters of ``function``.

    Raises:
        UserError: it asks for neither ``completion`` nor ``completions``, for both, or has positional-only parameters.
    """
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters}
    if len(names & {"completion", "completions"}) != 1:
        raise UserError(
            f"reward {name!r} must take either completion (one a call) or completions (all in one call), and takes "
            f"{', '.join(names) or 'nothing'}; name its parameter so"
        )
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise UserError(f"reward {name!r} has positional-only parameters, but is called by name; take the / out")
    batched = "completions" in names
    ours = _MANY if batched else _ONE
    columns = [p for p in parameters if p.name not in ours and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    any_column = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Signature(
        batched=batched,
        is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__),
        # With **columns TRL's functions expect to find prompts there.
        given=tuple(ours) if any_column else tuple(n for n in ours if n in names),
        required=tuple(p.name for p in columns if p.default is p.empty),
        optional=tuple(p.name for p in columns if p.default is not p.empty),
        any_column=any_column,
    )
