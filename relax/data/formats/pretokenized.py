"""Rows that come as token ids: the ids, and which of them are learnt. Knows no tokenizer, so no vocabulary either."""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress, pairwise
from typing import Any, TypeVar

import numpy as np

from relax.data.examples import Row, Tokens
from relax.data.formats.cells import kind, shown, value
from relax.errors import UserError

_T = TypeVar("_T")

NOT_LEARNT = -100
_MASKS = ("loss_mask", "completion_mask", "assistant_masks")
_LARGEST = 2**31 - 1  # ids are kept in 32 bits
_SEVERAL_DOCUMENTS = (
    "the row holds several documents, which would see one another; give each a row of its own, "
    "--layout=packed packs them"
)


def read_tokens(row: Row) -> Tokens:
    """``input_ids``, and per token whether it is learnt: where every column given says so, all if none is given.

    ``labels`` hold the token's own id (they are not shifted) or -100; ``loss_mask``, ``completion_mask`` and
    ``assistant_masks`` hold 1 or 0. Padding, where ``attention_mask`` is 0, is taken away.

    Raises:
        UserError: ids that are not whole numbers from 0 on, a column of another length, labels that are neither,
            padding between tokens, several documents in one row.
    """
    ids = _whole_numbers(row, "input_ids")
    if ids and not 0 <= min(ids) <= max(ids) <= _LARGEST:
        number, token = _first(ids, lambda token: not 0 <= token <= _LARGEST)
        raise UserError(f"'input_ids' must lie between 0 and {_LARGEST}, entry {number} is {shown(token)}")
    said = [_read_mask(row, name, len(ids)) for name in _MASKS if row.get(name) is not None]
    if row.get("labels") is not None:
        said.append(_read_labels(row, ids))
    learnt = said[0] if len(said) == 1 else [all(marks) for marks in zip(*said, [True] * len(ids), strict=True)]
    real = _without_padding(row, len(ids))
    _check_one_document(row, real)
    if not ids[real]:
        raise UserError("'input_ids' holds no token: there is nothing to learn")
    return Tokens(ids[real], learnt[real])


def _read_labels(row: Row, ids: list[int]) -> list[bool]:
    labels = _beside(_whole_numbers(row, "labels"), "labels", len(ids))
    learnt = [label != NOT_LEARNT for label in labels]
    if [*compress(labels, learnt)] != [*compress(ids, learnt)]:
        number, (label, token) = _first(
            zip(labels, ids, strict=True), lambda pair: pair[0] not in (NOT_LEARNT, pair[1])
        )
        shifted = "; they look shifted by one: give every token its own id, training shifts"
        raise UserError(
            f"'labels' must be {NOT_LEARNT} or the token's own id, entry {number} is {shown(label)} and the id is "
            f"{token}{shifted if _are_shifted(labels, ids) else ''}"
        )
    return learnt


def _are_shifted(labels: Sequence[int], ids: list[int]) -> bool:
    """Whether every label is the id of the next token."""
    return all(label in (NOT_LEARNT, following) for label, following in zip(labels, ids[1:], strict=False))


def _read_mask(row: Row, column: str, length: int) -> list[bool]:
    mask = _beside(_entries(row, column), column, length)
    if not ({*map(type, mask)} <= {int, bool} and {*mask} <= {0, 1}):
        number, mark = _first(mask, lambda mark: type(mark) not in (int, bool) or mark not in (0, 1))
        raise UserError(f"{column!r} must hold 1 or 0, entry {number} is {shown(mark)}")
    return [*map(bool, mask)]


def _without_padding(row: Row, length: int) -> slice:
    """Where the tokens lie that are no padding."""
    if row.get("attention_mask") is None:
        return slice(0, length)
    mask = _read_mask(row, "attention_mask", length)
    if not any(mask):
        return slice(0, 0)
    real = slice(mask.index(True), length - mask[::-1].index(True))
    if not all(mask[real]):
        raise UserError("'attention_mask' has a 0 between tokens: padding can only stand before or behind a row")
    return real


def _check_one_document(row: Row, real: slice) -> None:
    """Refuse rows that were packed elsewhere, told by the columns that packing leaves behind."""
    if row.get("position_ids") is not None:
        positions = _whole_numbers(row, "position_ids")[real]
        if any(after != before + 1 for before, after in pairwise(positions)):
            raise UserError(f"'position_ids' do not count up: {_SEVERAL_DOCUMENTS}")
    if row.get("seq_lengths") is not None and len(_entries(row, "seq_lengths")) > 1:
        raise UserError(f"'seq_lengths' has more than one entry: {_SEVERAL_DOCUMENTS}")


def _whole_numbers(row: Row, column: str) -> list[int]:
    entries = _entries(row, column)
    if not {*map(type, entries)} <= {int}:
        number, wrong = _first(entries, lambda entry: type(entry) is not int)
        raise UserError(f"{column!r} must hold whole numbers, entry {number} is {shown(wrong)}")
    return [*entries]


def _entries(row: Row, column: str) -> Sequence[Any]:
    entries = value(row, column)
    if isinstance(entries, np.ndarray):
        entries = entries.tolist()
    if not isinstance(entries, list | tuple):
        raise UserError(f"{column!r} must be a list of numbers, got {kind(entries)}")
    return entries


def _first(entries: Iterable[_T], is_wrong: Callable[[_T], bool]) -> tuple[int, _T]:
    """The first wrong entry and its number. Whole columns are checked at once, which is much faster, until one is."""
    return next((number, entry) for number, entry in enumerate(entries, 1) if is_wrong(entry))


def _beside(entries: Sequence[_T], column: str, length: int) -> Sequence[_T]:
    if len(entries) != length:
        raise UserError(f"{column!r} must have one entry a token, got {len(entries)} for {length} 'input_ids'")
    return entries
