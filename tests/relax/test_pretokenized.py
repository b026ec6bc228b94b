"""Rows that come as token ids: what is learnt of them, what is padding, and what is refused."""
# ruff: noqa: E501  (tables of literal messages)

from typing import Any

import numpy as np
import pytest

from relax.data.examples import Tokens
from relax.data.formats.pretokenized import read_tokens
from relax.errors import UserError


@pytest.mark.parametrize(
    ("columns", "learnt"),
    [
        ({}, [True, True, True]),
        ({"labels": [-100, 6, 7]}, [False, True, True]),
        ({"labels": [5, 6, 7]}, [True, True, True]),
        ({"labels": [-100, -100, -100]}, [False, False, False]),
        ({"loss_mask": [0, 1, 0]}, [False, True, False]),
        ({"completion_mask": [False, True, True]}, [False, True, True]),
        ({"assistant_masks": [0, 0, 1]}, [False, False, True]),
        ({"completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}, [False, True, False]),
        ({"labels": [-100, 6, 7], "loss_mask": [1, 1, 0]}, [False, True, False]),
        ({"labels": None, "loss_mask": None, "attention_mask": None, "position_ids": None}, [True, True, True]),
        ({"attention_mask": [1, 1, 1], "position_ids": [0, 1, 2], "seq_lengths": [3]}, [True, True, True]),
    ],
)
def test_a_token_is_learnt_where_every_column_says_so(columns: dict[str, Any], learnt: list[bool]) -> None:
    assert read_tokens({"input_ids": [5, 6, 7], **columns}) == Tokens([5, 6, 7], learnt)


def test_padding_on_either_side_is_taken_away() -> None:
    right = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [-100, 6, -100, -100]}
    assert read_tokens(right) == Tokens([5, 6], [False, True])
    left = {
        "input_ids": [0, 0, 5, 6],
        "attention_mask": [0, 0, 1, 1],
        "position_ids": [1, 1, 0, 1],
        "labels": [0, 0, 5, 6],
    }
    assert read_tokens(left) == Tokens([5, 6], [True, True])


def test_arrays_and_tuples_are_lists() -> None:
    row = {"input_ids": np.array([5, 6]), "labels": (-100, 6), "attention_mask": np.array([True, True])}
    tokens = read_tokens(row)
    assert tokens == Tokens([5, 6], [False, True])
    assert [type(token) for token in tokens.input_ids] == [int, int]


SEVERAL = "the row holds several documents, which would see one another; give each a row of its own, --layout=packed packs them"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": None}, "'input_ids' must be a list of numbers, got nothing (null)"),
        ({"input_ids": "[5, 6]"}, "'input_ids' must be a list of numbers, got str"),
        ({"input_ids": np.array(5)}, "'input_ids' must be a list of numbers, got int"),
        ({"input_ids": []}, "'input_ids' holds no token: there is nothing to learn"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "'input_ids' holds no token: there is nothing to learn"),
        ({"input_ids": [5, 6.5]}, "'input_ids' must hold whole numbers, entry 2 is 6.5"),
        ({"input_ids": [5, True]}, "'input_ids' must hold whole numbers, entry 2 is True"),
        ({"input_ids": [5, None]}, "'input_ids' must hold whole numbers, entry 2 is nothing (null)"),
        ({"input_ids": [5, float("nan")]}, "'input_ids' must hold whole numbers, entry 2 is NaN (an empty cell?)"),
        ({"input_ids": [[5], [6]]}, "'input_ids' must hold whole numbers, entry 1 is list"),
        ({"input_ids": [5, -1]}, "'input_ids' must lie between 0 and 2147483647, entry 2 is -1"),
        ({"input_ids": [5, 2**31]}, "'input_ids' must lie between 0 and 2147483647, entry 2 is 2147483648"),
        ({"input_ids": [10**5000]}, "'input_ids' must lie between 0 and 2147483647, entry 1 is a number of more than 40 digits"),
        ({"input_ids": [5, 6], "labels": [5]}, "'labels' must have one entry a token, got 1 for 2 'input_ids'"),
        ({"input_ids": [5, 6], "loss_mask": [1, 1, 1]}, "'loss_mask' must have one entry a token, got 3 for 2 'input_ids'"),
        ({"input_ids": [5, 6], "attention_mask": []}, "'attention_mask' must have one entry a token, got 0 for 2 'input_ids'"),
        ({"input_ids": [5, 6], "loss_mask": 1}, "'loss_mask' must be a list of numbers, got int"),
        ({"input_ids": [5, 6], "loss_mask": [0, 0.5]}, "'loss_mask' must hold 1 or 0, entry 2 is 0.5"),
        ({"input_ids": [5, 6], "loss_mask": [0, []]}, "'loss_mask' must hold 1 or 0, entry 2 is an empty list"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 2]}, "'attention_mask' must hold 1 or 0, entry 3 is 2"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 8]}, "'labels' must be -100 or the token's own id, entry 3 is 8 and the id is 7"),
        ({"input_ids": [5, 6, 7], "labels": [-1, 6, 7]}, "'labels' must be -100 or the token's own id, entry 1 is -1 and the id is 5"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 7, -100]}, "'labels' must be -100 or the token's own id, entry 2 is 7 and the id is 6; they look shifted by one: give every token its own id, training shifts"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "'attention_mask' has a 0 between tokens: padding can only stand before or behind a row"),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1, 0]}, f"'position_ids' do not count up: {SEVERAL}"),
        ({"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}, f"'seq_lengths' has more than one entry: {SEVERAL}"),
    ],
)  # fmt: skip
def test_a_bad_row_is_explained_in_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_tokens(row)
    assert str(error.value) == message
