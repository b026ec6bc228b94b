"""Rows of every format on their way to tokens: what is learnt of them, how they are cut, dropped, refused."""
# ruff: noqa: E501  (tables of literal messages)

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from byte_tokenizers import CHATML, byte_tokenizer, family_tokenizer
from pyarrow import parquet

from relax.data import (
    FORMATS,
    EncodingOptions,
    RowSubset,
    Sample,
    TokenizedDataset,
    load_rows,
    split_rows,
    tokenize_row,
    tokenize_rows,
)
from relax.errors import UserError

PLAIN = byte_tokenizer()
WITH_BOS = byte_tokenizer(adds_bos=True)
CHAT = byte_tokenizer(CHATML, eos_token="<|im_end|>")


def both(row: dict[str, Any], tokenizer: Any, **options: Any) -> tuple[str, str]:
    """The whole row, and what is trained of it, decoded."""
    sample = tokenize_row(row, tokenizer, EncodingOptions(**options))
    return tokenizer.decode(sample.input_ids), tokenizer.decode(sample.input_ids[sample.loss_mask])


def test_text_is_trained_whole_with_one_eos() -> None:
    assert both({"text": "one two"}, WITH_BOS) == ("<s>one two</s>", "one two</s>")
    assert both({"text": "one two</s>"}, WITH_BOS) == ("<s>one two</s>", "one two</s>")
    assert both({"text": "one two"}, PLAIN) == ("one two</s>", "ne two</s>"), "nothing predicts the first token"


def test_bos_is_never_doubled() -> None:
    assert both({"text": "<s>one"}, WITH_BOS) == ("<s>one</s>", "one</s>")
    assert both({"prompt": "<s>one", "completion": " two"}, WITH_BOS) == ("<s>one two</s>", " two</s>")


def test_prompt_is_read_completion_is_trained() -> None:
    row = {"prompt": "2+2=", "completion": "4"}
    assert both(row, WITH_BOS) == ("<s>2+2=4</s>", "4</s>")
    assert both(row, WITH_BOS, train_on="last") == ("<s>2+2=4</s>", "4</s>")
    assert both(row, WITH_BOS, train_on="all") == ("<s>2+2=4</s>", "2+2=4</s>")
    assert both({"prompt": "", "completion": "4"}, WITH_BOS) == ("<s>4</s>", "4</s>")


def test_prompt_and_completion_are_joined_as_ids_so_no_token_spans_them() -> None:
    tokenizer = byte_tokenizer(merges=[("=", "4")])
    sample = tokenize_row({"prompt": "2+2=", "completion": "4"}, tokenizer)
    assert sample.input_ids[:4].tolist() == tokenizer("2+2=")["input_ids"]
    assert tokenizer.decode(sample.input_ids[sample.loss_mask]) == "4</s>"


def test_a_tokenizer_that_adds_an_eos_itself_does_not_end_the_prompt_with_it() -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ids)
    assert tokenizer.decode(tokenizer("x")["input_ids"]) == "<s>x</s>"
    assert both({"prompt": "2+2=", "completion": "4"}, tokenizer) == ("<s>2+2=4</s>", "4</s>")
    assert both({"text": "x"}, tokenizer) == ("<s>x</s>", "x</s>")


def test_bos_equal_to_eos_as_in_gpt2() -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer(bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    bos = [("<|endoftext|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=bos)
    assert both({"text": "x"}, tokenizer) == ("<|endoftext|>x<|endoftext|>", "x<|endoftext|>")


def test_rows_too_long_are_cut_and_counted_and_dropped_if_nothing_is_left() -> None:
    rows = [
        {"prompt": "abc", "completion": "x"},
        {"prompt": "abc", "completion": "yyyy"},
        {"prompt": "abcde", "completion": "z"},
    ]
    dataset = tokenize_rows(rows, PLAIN, EncodingOptions(max_length=5), max_dropped_share=0.5)

    assert [PLAIN.decode(sample.input_ids) for sample in map(dataset.__getitem__, range(2))] == ["abcx</s>", "abcyy"]
    assert dataset.source_rows.tolist() == [0, 1]
    report = dataset.report
    assert (report.rows, report.rows_kept, report.truncated, report.tokens, report.trained_tokens) == (3, 2, 1, 10, 4)
    assert report.dropped == {"no training target within max_length": 1}


def test_losing_more_than_five_percent_of_the_rows_stops_the_run() -> None:
    rows = [{"text": "ab"}] * 19 + [{"text": ""}]
    assert tokenize_rows(rows, PLAIN).report.dropped == {"empty text": 1}, "5 % is allowed"
    with pytest.raises(UserError) as error:
        tokenize_rows([*rows, {"text": ""}], PLAIN, where="a.jsonl")
    assert str(error.value) == (
        "a.jsonl: 2 of 21 rows have nothing to learn (2 x empty text), more than --max_dropped_share=0.05 allows; "
        "mend the data or allow a larger share"
    )
    assert len(tokenize_rows([*rows, {"text": ""}], PLAIN, max_dropped_share=0.1)) == 19


def test_no_row_left_names_the_length() -> None:
    with pytest.raises(UserError, match=r"^data: none of the 1 rows is left .*; raise --max_length=4"):
        tokenize_rows(
            [{"prompt": "long prompt", "completion": "x"}], PLAIN, EncodingOptions(max_length=4), max_dropped_share=1.0
        )
    with pytest.raises(UserError, match="--max_length must be at least 2"):
        tokenize_rows([{"text": "x"}], PLAIN, EncodingOptions(max_length=1))
    with pytest.raises(UserError, match="data: no rows"):
        tokenize_rows([], PLAIN)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"text": "a"}, {"text": None}, "'text' must be a string, got nothing (null)"),
        ({"text": "a"}, {"text": 3}, "'text' must be a string, got int"),
        ({"text": "a"}, {"txt": "a"}, "no 'text' in this row, it has ['txt']; did you mean 'txt'?"),
        ({"text": "a"}, {"messages": []}, "the rows are read as 'text', this one has no 'text' and looks like 'messages': a data set has one format, put the rows of each into a file of its own"),
        ({"text": "a"}, ["a"], "a row must be a mapping from column to value, got list"),
        ({"text": "a"}, {"text": "\ud83d"}, r"the text holds half of a surrogate pair ('\ud83d'), which is not Unicode text"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}, "the completion is empty: there is nothing to learn"),
        ({"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}, "'prompt' must be a string, got nothing (null)"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "'prompt' must be a list of messages, got str"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(good: Any, bad: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        tokenize_rows([good, bad], PLAIN, where="data.jsonl")
    assert str(error.value) == f"data.jsonl:row 2: {message}"


def test_alpaca_rows_learn_the_output_behind_the_published_prompt() -> None:
    whole, trained = both({"instruction": "Add.", "input": "1 2", "output": "3"}, WITH_BOS)
    assert whole.startswith("<s>Below is an instruction that describes a task, paired with an input")
    assert whole.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:3</s>")
    assert trained == "3</s>"


def test_sharegpt_rows_are_learnt_as_messages_are() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "S"}
    turns = [("system", "S"), ("user", "Hi"), ("assistant", "Hello")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert both(row, CHAT) == both({"messages": messages}, CHAT)
    assert both(row, CHAT)[1] == "Hello<|im_end|>"


@pytest.mark.parametrize("marked", [False, True])
def test_turns_of_weight_0_are_read_and_not_learnt_with_markers_or_without(marked: bool) -> None:
    answers = [{"role": "assistant", "content": content, "weight": weight} for content, weight in (("A", 0), ("B", 1))]
    asking = {"role": "user", "content": "Hi"}
    row = {"messages": [asking, answers[0], asking, answers[1], asking, answers[0]]}
    whole, trained = both(row, family_tokenizer("chatml", marked=marked))
    assert whole.count("A<|im_end|>") == 1
    assert trained == "B<|im_end|>"


def test_tokenized_rows_are_taken_as_they_are() -> None:
    sample = tokenize_row(
        {"input_ids": [7, 8, 9, 0], "labels": [7, -100, 9, -100], "attention_mask": [1, 1, 1, 0]}, PLAIN
    )
    assert sample.input_ids.tolist() == [7, 8, 9], "no eos is put behind it"
    assert sample.loss_mask.tolist() == [False, False, True], "nothing predicts the first token"


def test_columns_are_renamed_a_format_is_named_and_a_weight_is_read() -> None:
    row = {"question": "2+2=", "answer": "4", "text": "2+2=4", "w": "0.5"}
    renamed = {"prompt": "question", "completion": "answer"}
    assert both(row, WITH_BOS, columns=renamed) == ("<s>2+2=4</s>", "4</s>")
    assert both(row, WITH_BOS, columns=renamed, format="text") == ("<s>2+2=4</s>", "2+2=4</s>")
    assert tokenize_row(row, PLAIN, EncodingOptions(weight_column="w")).weight == 0.5


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "a", "chosen": "b", "rejected": "c"}])
def test_rows_with_nothing_to_learn_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^data:row 1: the row is "):
        tokenize_row(row, PLAIN)


def test_a_bad_conversation_is_named() -> None:
    good, bad = ([{"role": role, "content": "Hi"}] for role in ("assistant", "asistant"))
    with pytest.raises(UserError, match=r"^data.jsonl:row 2: message 1 of 'messages' has the unknown role 'asistant'"):
        tokenize_rows([{"messages": good}, {"messages": bad}], CHAT, where="data.jsonl")


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the tokenizer has no eos token, so the model could not learn to stop"):
        tokenize_row({"text": "a"}, byte_tokenizer(eos_token=None))


def test_text_the_tokenizer_has_no_token_for_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE({"1": 0, "</s>": 1}, []))
    digits = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert tokenize_row({"prompt": "1", "completion": "1"}, digits).input_ids.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="the tokenizer has no token for anything in 'é'"):
        tokenize_row({"prompt": "1", "completion": "é"}, digits)


def test_rows_of_a_split_keep_their_numbers() -> None:
    rows = [{"text": f"row {number}"} for number in range(20)]
    train, validation = split_rows(rows, 0.25, seed=1)
    dataset = tokenize_rows(validation, PLAIN)
    assert dataset.source_rows.tolist() == validation.indices.tolist()
    assert [PLAIN.decode(dataset[at].input_ids) for at in range(5)] == [f"row {at}</s>" for at in validation.indices]

    rows[int(train.indices[3])] = {"text": None}  # type: ignore[dict-item]
    with pytest.raises(UserError, match=f"^data:row {train.indices[3] + 1}: "):
        tokenize_rows(RowSubset(rows, train.indices), PLAIN)


def test_the_data_set_is_flat_counts_targets_and_is_pickled_whole() -> None:
    samples = [Sample.of([1, 2, 3], [True, False, True]), Sample.of([4, 5], [False, True]), Sample.of([6], [True])]
    dataset = TokenizedDataset.from_samples(samples)
    assert dataset.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert dataset.tokens.dtype == np.int32
    assert dataset.loss_mask.tolist() == [False, False, True, False, True, False], "no first token is a target"
    assert (dataset.lengths.tolist(), dataset.num_targets.tolist()) == ([3, 2, 1], [1, 1, 0])
    assert [sample.input_ids.tolist() for sample in (dataset[at] for at in range(3))] == [[1, 2, 3], [4, 5], [6]]
    assert dataset[1].input_ids.base is not None, "views, not copies"
    with pytest.raises(IndexError):
        dataset[3]

    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint == dataset.fingerprint
    assert TokenizedDataset.from_samples(samples[::-1]).fingerprint != dataset.fingerprint
    other_mask = [samples[0], Sample.of([4, 5], [False, False]), samples[2]]
    assert TokenizedDataset.from_samples(other_mask).fingerprint != dataset.fingerprint


def test_a_data_set_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least one row"):
        TokenizedDataset.from_samples([])
    with pytest.raises(UserError, match="one loss mask entry a token, got 1 for 2 tokens"):
        Sample.of([1, 2], [True])


def test_a_null_argument_of_a_call_is_kept_where_it_was_written_and_not_where_a_column_added_it(tmp_path: Path) -> None:
    def row(arguments: dict[str, object]) -> dict[str, object]:
        call = {"function": {"name": "f", "arguments": arguments}}
        return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]}

    rows = [row({"unit": None, "city": "Rome"}), row({"city": "Rome", "day": "Monday"})]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    def arguments(source: str) -> list[dict[str, object]]:
        chats = [FORMATS["messages"].read(r) for r in load_rows(str(tmp_path / source))]
        return [chat.messages[1]["tool_calls"][0]["function"]["arguments"] for chat in chats]  # type: ignore[union-attr]

    assert arguments("rows.jsonl") == [{"unit": None, "city": "Rome"}, {"city": "Rome", "day": "Monday"}]
    assert arguments("rows.parquet") == [{"city": "Rome"}, {"city": "Rome", "day": "Monday"}]
