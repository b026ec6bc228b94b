"""Preference pairs: a prompt, a better and a worse answer, in the shapes that data sets have. Trains nothing."""

from itertools import takewhile

from relax.data.examples import Message, Preference, Row
from relax.data.formats.cells import kind, string, value
from relax.data.formats.messages import find_answers, read_turns
from relax.data.formats.tools import read_tools
from relax.errors import UserError


def read_preference(row: Row) -> Preference:
    """``chosen`` and ``rejected``, both text or both messages, and the ``prompt`` before them if the row has one.

    Messages may hold the prompt as well: what both lists begin with is the prompt, and a ``prompt`` column that says
    the same (as messages, or as the text of the user's turn) adds nothing. Texts without a ``prompt`` are compared
    whole, with an empty prompt: what they share adds as much to one side as to the other.

    Raises:
        UserError: text beside messages, an empty answer, or two answers that are the same.
    """
    chosen, rejected = value(row, "chosen"), value(row, "rejected")
    if isinstance(chosen, list) or isinstance(rejected, list):
        return _read_messages(row)
    prompt = string(row, "prompt") if row.get("prompt") is not None else ""
    pair = Preference(prompt, string(row, "chosen"), string(row, "rejected"))
    for column, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not answer:
            raise UserError(f"{column!r} is empty: there is nothing to prefer")
    _check_differ(pair.chosen, pair.rejected)
    return pair


def _read_messages(row: Row) -> Preference:
    chosen, rejected = read_turns(row, "chosen"), read_turns(row, "rejected")
    _check_differ(chosen, rejected)
    shared = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))]
    prompt = _read_prompt(row)
    if prompt is None or _holds(shared, prompt):
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    for column, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer:
            raise UserError(f"{column!r} is no longer than the prompt: there is nothing to prefer")
        find_answers(answer, column)
    return Preference(prompt, chosen, rejected, read_tools(row))


def _read_prompt(row: Row) -> list[Message] | None:
    """The turns before the answers; text is the user's."""
    prompt = row.get("prompt")
    if prompt is None:
        return None
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    if not isinstance(prompt, list):
        raise UserError(f"'prompt' must be a string or a list of messages, got {kind(prompt)}")
    return read_turns(row, "prompt") if prompt else []


def _holds(shared: list[Message], prompt: list[Message]) -> bool:
    """Whether the answers begin with the prompt, possibly behind a system turn that it does not have."""
    return bool(prompt) and prompt in (shared[: len(prompt)], shared[-len(prompt) :])


def _check_differ(chosen: object, rejected: object) -> None:
    if chosen == rejected:
        raise UserError("'chosen' and 'rejected' are the same: there is nothing to prefer")
