"""Preference pairs in the shapes that published data sets have."""
# ruff: noqa: E501  (tables of literal messages)

from typing import Any

import pytest

from relax.data.examples import Preference
from relax.data.formats.preference import read_preference
from relax.errors import UserError

SYSTEM = {"role": "system", "content": "S"}
ASK = {"role": "user", "content": "2+2?"}
GOOD, BAD = ({"role": "assistant", "content": answer} for answer in "45")
CALL = {"role": "assistant", "content": "Let me see."}


def test_texts_keep_their_prompt_or_have_none() -> None:
    assert read_preference({"prompt": "2+2=", "chosen": "4", "rejected": "5"}) == Preference("2+2=", "4", "5")
    for row in ({}, {"prompt": None}):
        assert read_preference({**row, "chosen": "2+2=4", "rejected": "2+2=5"}) == Preference("", "2+2=4", "2+2=5")


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ({"prompt": [ASK]}, []),
        ({"prompt": "2+2?"}, []),
        ({}, [ASK]),
        ({"prompt": None}, [ASK]),
        ({"prompt": "2+2?"}, [ASK]),
        ({"prompt": [ASK]}, [ASK]),
    ],
)
def test_messages_share_their_prompt_or_leave_it_to_a_column(prompt: dict[str, Any], before: list[Any]) -> None:
    row = {**prompt, "chosen": [*before, GOOD], "rejected": [*before, BAD], "tools": '[{"name": "f"}]'}
    assert read_preference(row) == Preference([ASK], [GOOD], [BAD], [{"name": "f"}])


def test_turns_that_both_answers_share_belong_to_the_prompt_they_hold() -> None:
    pair = {"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}
    assert read_preference({"prompt": "2+2?", **pair}) == Preference([SYSTEM, ASK], [GOOD], [BAD])
    pair = {"chosen": [ASK, CALL, GOOD], "rejected": [ASK, CALL, BAD]}
    assert read_preference({"prompt": [ASK], **pair}) == Preference([ASK, CALL], [GOOD], [BAD])
    pair = {"chosen": [CALL, GOOD], "rejected": [CALL, BAD]}
    assert read_preference({"prompt": [ASK], **pair}) == Preference([ASK], [CALL, GOOD], [CALL, BAD])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are the same: there is nothing to prefer"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "'chosen' and 'rejected' are the same: there is nothing to prefer"),
        ({"chosen": "a", "rejected": ""}, "'rejected' is empty: there is nothing to prefer"),
        ({"chosen": None, "rejected": "a"}, "'chosen' must be a string, got nothing (null)"),
        ({"chosen": "a", "rejected": [BAD]}, "'chosen' must be a list of messages, got str"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' must be a string, got int"),
        ({"prompt": 3, "chosen": [GOOD], "rejected": [BAD]}, "'prompt' must be a string or a list of messages, got int"),
        ({"prompt": [ASK], "chosen": "a", "rejected": "b"}, "'prompt' must be a string, got list"),
        ({"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD]}, "'rejected' is no longer than the prompt: there is nothing to prefer"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, SYSTEM]}, "'rejected' has no turn of the role 'assistant' to learn, its roles are ['system']"),
    ],
)  # fmt: skip
def test_a_bad_pair_is_explained_in_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_preference(row)
    assert str(error.value) == message
