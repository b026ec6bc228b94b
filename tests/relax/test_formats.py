"""Which format rows have: recognised by their columns or named, their columns renamed, their weight read."""
# ruff: noqa: E501  (tables of literal messages)

from typing import Any

import pytest

from relax.data.examples import Prompt, Text
from relax.data.formats.formats import FORMATS, choose, read_weight, recognise, rename
from relax.errors import UserError


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["text"], "text"),
        (["prompt", "id"], "prompt"),
        (["id", "completion", "prompt"], "prompt_completion"),
        (["text", "prompt", "completion"], "prompt_completion"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["instruction", "output", "prompt"], "alpaca"),
        (["prompt", "messages", "text"], "messages"),
        (["prompt", "chosen", "rejected", "score_chosen"], "preference"),
        (["prompt", "chosen", "rejected", "messages"], "messages"),
        (["conversations", "system", "tools", "id"], "conversations"),
        (["input_ids", "attention_mask", "labels", "text"], "tokenized"),
        (["input_ids", "messages"], "messages"),
    ],
)
def test_a_format_is_recognised_by_its_columns_the_most_structured_first(columns: list[str], name: str) -> None:
    assert recognise(columns).name == name
    assert choose(None, columns).name == name


def test_a_format_that_is_named_wins_over_the_columns() -> None:
    assert choose("text", ["messages", "text"]).name == "text"
    assert choose("prompt", ["prompt", "completion"]).read({"prompt": "p", "completion": "c"}) == Prompt("p")


KNOWN = "messages; conversations; chosen + rejected; input_ids; instruction + output; prompt + completion; prompt; text"


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        (None, ["Mesages", "id"], f"no format fits the columns ['Mesages', 'id']: known are {KNOWN}; if 'Mesages' is what it calls 'messages', say so with --columns=\"{{messages: Mesages}}\""),
        (None, ["body"], f"no format fits the columns ['body']: known are {KNOWN}; say which is which with --columns=\"{{text: YOUR_NAME}}\""),
        (None, [], f"no format fits the columns []: known are {KNOWN}; say which is which with --columns=\"{{text: YOUR_NAME}}\""),
        ("alpca", ["text"], "--data_format must be one of messages, conversations, preference, tokenized, alpaca, prompt_completion, prompt, text, got alpca; did you mean 'alpaca'?"),
        ("alpaca", ["instruction", "outpt"], "--data_format=alpaca needs a column 'output', and the columns are ['instruction', 'outpt']; if 'outpt' is what it calls 'output', say so with --columns=\"{output: outpt}\""),
        ("text", ["input_ids"], "--data_format=text needs a column 'text', and the columns are ['input_ids']; say which is which with --columns=\"{text: YOUR_NAME}\""),
    ],
)  # fmt: skip
def test_columns_that_fit_nothing_are_listed_with_the_way_out(
    name: str | None, columns: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        choose(name, columns)
    assert str(error.value) == message


def test_a_message_about_columns_stays_one_short_line_whatever_they_are_called() -> None:
    columns = ["mess\nages", "x" * 100_000, *(f"column {number}" for number in range(1000))]
    for call in (
        lambda: recognise(columns),
        lambda: FORMATS["text"].read(dict.fromkeys(columns, "")),
        lambda: rename(dict.fromkeys(columns, ""), {"text": "mess\tages"}),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 800
        assert "and 990 more" in str(error.value)


def test_columns_are_renamed_to_ours_and_lose_their_own_name() -> None:
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "id": 3}
    renamed = rename(row, {"completion": "chosen"})
    assert renamed == {"prompt": "p", "completion": "c", "rejected": "r", "id": 3}
    assert recognise(renamed).read(renamed) == Text("p", "c")
    assert row == {"prompt": "p", "chosen": "c", "rejected": "r", "id": 3}, "the row itself is left alone"


def test_renaming_can_swap_two_columns_use_one_twice_and_fill_an_empty_one() -> None:
    assert rename({"prompt": "a", "text": "b"}, {"prompt": "text", "text": "prompt"}) == {"prompt": "b", "text": "a"}
    assert rename({"ids": [1]}, {"input_ids": "ids", "labels": "ids"}) == {"input_ids": [1], "labels": [1]}
    assert rename({"prompt": None, "question": "a"}, {"prompt": "question"}) == {"prompt": "a"}, (
        "Parquet fills with null"
    )


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": "a"}, {"prompt": "quesion"}, "--columns: 'prompt' is to be 'quesion', and the row has no such column, it has ['question']; did you mean 'question'?"),
        ({"question": "a", "prompt": "b"}, {"prompt": "question"}, "--columns: 'prompt' is to be 'question', and the row has a column 'prompt' already; take one of the two out of the data"),
        ([], {"prompt": "question"}, "a row must be a mapping from column to value, got an empty list"),
    ],
)  # fmt: skip
def test_renaming_names_the_column_that_is_wrong(row: Any, columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        rename(row, columns)
    assert str(error.value) == message


def test_renaming_to_a_column_that_no_format_has_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^--columns: no format has a column 'promt', known are .*; did you mean 'prompt'\?$"
    ):
        rename({"question": "a"}, {"promt": "question"})


@pytest.mark.parametrize(
    ("name", "row", "looks_like"),
    [
        ("messages", {"text": "a"}, "text"),
        ("messages", {"messages": None, "prompt": "a", "completion": "b"}, "prompt_completion"),
        ("text", {"messages": [], "text": None}, "messages"),
        ("prompt_completion", {"instruction": "a", "output": "b"}, "alpaca"),
    ],
)
def test_a_row_of_another_format_says_which(name: str, row: dict[str, Any], looks_like: str) -> None:
    with pytest.raises(UserError) as error:
        FORMATS[name].read(row)
    assert str(error.value) == (
        f"the rows are read as {name!r}, this one has no {FORMATS[name].columns[0]!r} and looks like {looks_like!r}: "
        "a data set has one format, put the rows of each into a file of its own"
    )


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("text", {"text": None}, "'text' must be a string, got nothing (null)"),
        ("text", {"text": float("nan")}, "'text' must be a string, got NaN (an empty cell?)"),
        ("text", {"text": ["a"]}, "'text' must be a string, got list"),
        ("text", {"Text": "a"}, "no 'text' in this row, it has ['Text']; did you mean 'Text'?"),
        ("text", None, "a row must be a mapping from column to value, got nothing (null)"),
        ("text", "a", "a row must be a mapping from column to value, got str"),
        ("prompt_completion", {"prompt": "a"}, "no 'completion' in this row, it has ['prompt']"),
        ("prompt_completion", {"prompt": "a", "completion": None}, "'completion' must be a string, got nothing (null)"),
        ("prompt_completion", {"prompt": 3, "completion": "a"}, "'prompt' must be a string, got int"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "the completion is empty: there is nothing to learn"),
        ("prompt", {"prompt": ""}, "'prompt' must be a string or a list of messages, got an empty str"),
        ("prompt", {"prompt": None}, "'prompt' must be a string or a list of messages, got nothing (null)"),
        ("alpaca", {"instruction": "a", "output": ""}, "the output is empty: there is nothing to learn"),
        ("alpaca", {"instruction": None, "output": "a"}, "'instruction' must be a string, got nothing (null)"),
        ("alpaca", {"instruction": "a", "input": 3, "output": "a"}, "'input' must be a string, got int"),
    ],
)  # fmt: skip
def test_a_bad_row_is_explained_in_one_line(name: str, row: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        FORMATS[name].read(row)
    assert str(error.value) == message


def test_alpaca_rows_are_written_as_published() -> None:
    read = FORMATS["alpaca"].read
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay {hi}.\n\n### Response:"
    )
    assert read({"instruction": "Say {hi}.", "output": "hi"}) == Text(without, "hi")
    assert read({"instruction": "Say {hi}.", "input": "", "output": "hi", "text": "old"}) == Text(without, "hi")
    assert read({"instruction": "Add.", "input": "1 {2}", "output": "3"}) == Text(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n### Response:",
        "3",
    )


@pytest.mark.parametrize(
    ("weight", "read"), [(2, 2.0), (0.5, 0.5), (0, 0.0), ("0.25", 0.25), (" 3 ", 3.0), (1e-60, 0.0)]
)
def test_a_weight_is_a_number_or_a_cell_of_a_csv_file(weight: Any, read: float) -> None:
    assert read_weight({"w": weight}, "w") == read


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1, "--weight_column: 'w' must be finite and at least 0, got -1"),
        ("-0.5", "--weight_column: 'w' must be finite and at least 0, got '-0.5'"),
        (float("nan"), "--weight_column: 'w' must be finite and at least 0, got NaN (an empty cell?)"),
        ("nan", "--weight_column: 'w' must be finite and at least 0, got 'nan'"),
        (float("inf"), "--weight_column: 'w' must be finite and at least 0, got inf"),
        (1e39, "--weight_column: 'w' must be finite and at least 0, got 1e+39"),
        pytest.param(10**5000, "--weight_column: 'w' must be finite and at least 0, got a number of more than 40 digits", id="huge"),
        (True, "--weight_column: 'w' must hold a number, got True"),
        (None, "--weight_column: 'w' must hold a number, got nothing (null)"),
        ("much", "--weight_column: 'w' must hold a number, got 'much'"),
        ([1.0], "--weight_column: 'w' must hold a number, got list"),
    ],
)  # fmt: skip
def test_a_bad_weight_says_what_is_wrong(weight: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_weight({"w": weight}, "w")
    assert str(error.value) == message


def test_a_weight_column_that_is_not_there_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"^--weight_column: no 'weight' in this row, it has \['text', 'wieght'\]; did you mean 'wieght'\?$",
    ):
        read_weight({"text": "a", "wieght": 1}, "weight")
