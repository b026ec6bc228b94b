"""A whole data set is tokenized: what is cut, dropped, weighed, counted; in processes or not, in parts or not."""

import functools
import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import CHATML, byte_tokenizer, family_tokenizer

from relax.data import (
    EncodingOptions,
    TokenizedDataset,
    load_rows,
    split_rows,
    tokenize_row,
    tokenize_rows,
)
from relax.data.tokens import encoding, tokenization
from relax.data.tokens.row_checks import RowChecks
from relax.data.tokens.token_ids import TokenIds
from relax.data.tokens.tokenized import TokenizationReport
from relax.errors import UserError

PLAIN = byte_tokenizer()
WITH_BOS = byte_tokenizer(adds_bos=True)
CHAT = byte_tokenizer(CHATML, eos_token="<|im_end|>")
ROWS = [{"prompt": "abc", "completion": "x"}, {"prompt": "abcde", "completion": "yyyy"}]  # 5 and 10 tokens


def texts(dataset: TokenizedDataset, tokenizer: Any = PLAIN) -> list[tuple[str, str]]:
    """Each row, and what is trained of it."""
    samples = [dataset[at] for at in range(len(dataset))]
    return [(tokenizer.decode(s.input_ids), tokenizer.decode(s.input_ids[s.loss_mask])) for s in samples]


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [("end", ("abcdeyy", "yy")), ("start", ("deyyyy</s>", "yyyy</s>")), ("drop", None)],
)
def test_a_row_that_is_too_long(truncation: Any, expected: tuple[str, str] | None) -> None:
    dataset = tokenize_rows(ROWS, PLAIN, EncodingOptions(max_length=7, truncation=truncation), max_dropped_share=0)
    assert texts(dataset) == [("abcx</s>", "x</s>"), expected][: 2 if expected else 1]
    report = dataset.report
    assert report.rows == 2
    if expected:
        assert (report.truncated, report.truncated_tokens, report.dropped) == (1, 3, {})
    else:
        assert (report.truncated, report.truncated_tokens) == (0, 0)
        assert report.dropped == {"longer than max_length": 1}, "asked for, so no loss that max_dropped_share forbids"
    assert report.tokens == len(dataset.tokens), "what was cut off is not counted"


def test_truncation_error_names_row_and_length() -> None:
    with pytest.raises(UserError) as error:
        tokenize_rows(ROWS, PLAIN, EncodingOptions(max_length=9, truncation="error"), where="a.jsonl")
    assert str(error.value) == (
        "a.jsonl:row 2: the row has 10 tokens, more than --max_length=9; raise it, or choose "
        "--truncation=end, start or drop"
    )
    assert len(tokenize_rows(ROWS, PLAIN, EncodingOptions(max_length=10, truncation="error"))) == 2


def test_a_row_whose_start_is_cut_off_keeps_its_bos() -> None:
    options = EncodingOptions(max_length=6, truncation="start")
    assert texts(tokenize_rows(ROWS[1:], WITH_BOS, options), WITH_BOS) == [("<s>yyyy</s>", "yyyy</s>")]
    sample = tokenize_row({"text": "abcdef"}, WITH_BOS, EncodingOptions(max_length=3, truncation="start"))
    assert WITH_BOS.decode(sample.input_ids) == "<s>f</s>"


def test_where_the_start_is_cut_off_the_first_token_left_is_no_target() -> None:
    sample = tokenize_row({"text": "abcdef"}, PLAIN, EncodingOptions(max_length=3, truncation="start"))
    assert (PLAIN.decode(sample.input_ids), sample.loss_mask.tolist()) == ("ef</s>", [False, True, True])


def test_only_the_rows_that_nobody_asked_to_leave_out_count_as_lost() -> None:
    rows = [{"text": "a", "w": 1}] * 8 + [{"text": "a", "w": 0}, {"text": "too long", "w": 1}]
    options = EncodingOptions(max_length=4, truncation="drop", weight_column="w")
    dataset = tokenize_rows(rows, PLAIN, options, max_dropped_share=0)
    assert dataset.report.dropped == {"weight 0": 1, "longer than max_length": 1}
    with pytest.raises(UserError, match=r"none of the 1 rows is left .*1 x longer than max_length\); raise --max_le"):
        tokenize_rows(rows[-1:], PLAIN, options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": 1}, "--max_length must be at least 2, a token to read and one to predict, got 1"),
        ({"truncation": "middle"}, "--truncation must be one of end, start, drop, error, got 'middle'"),
        ({"train_on": "answers"}, "--train_on must be one of completion, last, all, got 'answers'"),
        ({"format": "txt"}, "data:row 1: --data_format must be one of messages, .* got txt"),
        (
            {"columns": {"text": "body"}},
            "data:row 1: --columns: 'text' is to be 'body', and the row has no",
        ),
        ({"weight_column": "w"}, "data:row 1: --weight_column: no 'w' in this row"),
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        tokenize_rows([{"text": "a"}], PLAIN, EncodingOptions(**wrong))
    with pytest.raises(UserError, match=r"^--tokenize_workers must be 0 \(only this process\) or more, got -1"):
        tokenize_rows([{"text": "a"}], PLAIN, workers=-1)


def test_an_option_without_effect_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="data: --truncation=drop has no effect without --max_length"):
        tokenize_rows(ROWS, PLAIN, EncodingOptions(truncation="drop"))
    eos = PLAIN.eos_token_id
    with pytest.warns(UserWarning, match="data: --train_on=last has no effect on tokenized rows"):
        tokenize_rows([{"input_ids": [1, 2, eos]}], PLAIN, EncodingOptions(train_on="last"))


def test_columns_of_other_names_and_a_named_format() -> None:
    rows = [{"q": "1+1=", "a": "2", "text": "beside"}]
    renamed = EncodingOptions(columns={"prompt": "q", "completion": "a"})
    assert texts(tokenize_rows(rows, PLAIN, renamed)) == [("1+1=2</s>", "2</s>")]
    assert texts(tokenize_rows(rows, PLAIN, EncodingOptions(format="text"))) == [("beside</s>", "eside</s>")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "data:row 1: the row is only a prompt, with nothing to learn; rows to learn from need a"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            r"data:row 1: the row is a preference pair.*--columns='{c",
        ),
    ],
)
def test_rows_with_nothing_to_learn_are_refused_with_the_way_out(row: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        tokenize_row(row, PLAIN)


def test_the_way_out_of_a_preference_pair_is_one() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    sample = tokenize_row(row, PLAIN, EncodingOptions(columns={"completion": "chosen"}))
    assert PLAIN.decode(sample.input_ids) == "ab</s>"
    asked = {"role": "user", "content": "Hi"}
    pair = {name: [asked, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    sample = tokenize_row(pair, CHAT, EncodingOptions(columns={"messages": "chosen"}))
    assert CHAT.decode(sample.input_ids[sample.loss_mask]) == "chosen<|im_end|>"


class TestTokenizedRows:
    eos = PLAIN.eos_token_id

    def test_their_ids_and_labels_are_used_as_they_are(self) -> None:
        row = {"input_ids": [5, 6, 7, self.eos], "labels": [-100, -100, 7, self.eos]}
        sample = tokenize_row(row, PLAIN)
        assert sample.input_ids.tolist() == [5, 6, 7, self.eos]
        assert sample.loss_mask.tolist() == [False, False, True, True]
        assert tokenize_row(row, PLAIN, EncodingOptions(train_on="all")).loss_mask.tolist() == [False, True, True, True]

    def test_an_id_outside_of_the_vocabulary_is_named(self) -> None:
        size = len(PLAIN)
        with pytest.raises(UserError) as error:
            tokenize_rows([{"input_ids": [1, size - 1]}, {"input_ids": [1, 2, size]}], PLAIN, where="a.parquet")
        assert str(error.value) == (
            f"a.parquet:row 2: token id {size} at position 2 is not in the vocabulary of {size} tokens: the row was "
            "made with another tokenizer"
        )

    def test_no_target_left_is_a_lost_row(self) -> None:
        rows = [{"input_ids": [1, self.eos]}, {"input_ids": [1, 2], "labels": [1, -100]}]
        dataset = tokenize_rows(rows, PLAIN, max_dropped_share=0.5)
        assert dataset.report.dropped == {"no training target": 1}

    def test_rows_that_do_not_end_are_warned_of(self) -> None:
        with pytest.warns(UserWarning, match="in 1 of 2 rows the row's own ids or labels end the last answer with no"):
            dataset = tokenize_rows([{"input_ids": [1, 2]}, {"input_ids": [1, self.eos]}], PLAIN)
        assert dataset.report.without_end_of_turn == 1


def test_an_end_that_was_cut_off_is_no_missing_end_of_turn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = tokenize_rows(ROWS, PLAIN, EncodingOptions(max_length=7))
    assert (cut.report.truncated, cut.report.without_end_of_turn) == (1, 0)
    eos = PLAIN.eos_token_id
    rows = [{"input_ids": [1, 2, eos, 3]}, {"input_ids": [1, eos]}]
    with pytest.warns(UserWarning, match="in 1 of 2 rows"):  # cut or not, its end is there
        tokenize_rows(rows, PLAIN, EncodingOptions(max_length=3, truncation="start"))


def test_weights_are_kept_and_change_the_fingerprint() -> None:
    rows = [{"text": "a", "w": 0.5}, {"text": "b", "w": 0}, {"text": "c", "w": 2}]
    dataset = tokenize_rows(rows, PLAIN, EncodingOptions(weight_column="w"))
    assert dataset.row_weights is not None
    assert dataset.row_weights.tolist() == [0.5, 2]
    assert [dataset[at].weight for at in range(2)] == [0.5, 2.0]
    assert dataset.source_rows.tolist() == [0, 2]
    bare = tokenize_rows([rows[0], rows[2]], PLAIN)
    assert bare.row_weights is None
    assert bare.fingerprint != dataset.fingerprint
    alike = TokenizedDataset.from_samples([dataset[0], dataset[1]])
    assert alike.fingerprint == dataset.fingerprint


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, None, "heavy"])
def test_a_wrong_weight_is_named(weight: Any) -> None:
    with pytest.raises(UserError, match=r"^data:row 2: --weight_column: 'w' must"):
        tokenize_rows([{"text": "a", "w": 1}, {"text": "a", "w": weight}], PLAIN, EncodingOptions(weight_column="w"))


def test_what_is_suspicious_is_counted() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "yes": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    rows = [{"text": text} for text in ("yes", "no", "yes", "yes", "<s><s>yes")]
    report = tokenize_rows(rows, tokenizer).report
    assert (report.duplicates, report.unknown_tokens, report.double_bos) == (2, 1, 1)

    one_for_all = byte_tokenizer(bos_token="</s>", eos_token="</s>", pad_token="</s>")
    one_for_all.unk_token = "</s>"
    assert tokenize_rows([{"text": "a"}], one_for_all).report.unknown_tokens == 0, "GPT-2's eos is no unknown token"


def test_a_report_goes_through_json() -> None:
    import json

    report = tokenize_rows([{"text": "ab"}, {"text": ""}, {"text": "ab"}], PLAIN, max_dropped_share=0.5).report
    assert (report.rows, report.rows_kept, report.duplicates) == (3, 2, 1)
    assert TokenizationReport.from_json(json.loads(json.dumps(report.as_json()))) == report


def test_long_rows_are_tokenized_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    tokenize = TokenIds.tokenize

    def counted(self: TokenIds, texts: list[str]) -> list[list[int]]:
        calls.append(len(texts))
        return tokenize(self, texts)

    monkeypatch.setattr(TokenIds, "tokenize", counted)
    monkeypatch.setattr(encoding, "_CHARACTERS_PER_CALL", 25)
    rows = [{"text": "x" * 10}] * 7
    dataset = tokenize_rows(rows, WITH_BOS, workers=0)
    assert len(dataset) == 7
    assert [calls[0], *calls[2:]] == [6, 6, 2], "an empty prompt and a text a row; the second call looks for the bos"


def conversations(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"messages": [{"role": "user", "content": f"row {n}"}, {"role": "assistant", "content": "x" * size}], "n": n}
        for n, size in enumerate(rng.integers(1, 40, count).tolist())
    ]


def equal(one: TokenizedDataset, other: TokenizedDataset) -> None:
    for name in ("tokens", "loss_mask", "offsets", "source_rows", "num_targets", "row_weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.report, one.fingerprint) == (other.report, other.fingerprint)


@pytest.fixture
def no_process_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_process_left")
class TestProcesses:
    def test_order_and_content_do_not_depend_on_them(self, tmp_path: Path) -> None:
        import json

        rows = [{**row, "n": row["n"] % 5} for row in conversations(2100)]  # a fifth of the rows has the weight 0
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = EncodingOptions(max_length=60, weight_column="n")
        alone = tokenize_rows(rows, CHAT, options, workers=0)
        assert alone.report.dropped == {"weight 0": 420}
        assert 0 < alone.report.truncated < 1680
        for workers in (1, 3):
            equal(tokenize_rows(rows, CHAT, options, workers=workers), alone)
        equal(tokenize_rows(load_rows(str(tmp_path / "a.jsonl")), CHAT, options, workers=2), alone)

    def test_a_bad_row_is_the_same_error(self) -> None:
        rows = conversations(2100)
        rows[1700] = {"messages": [{"role": "user", "content": None}]}
        errors = []
        for workers in (0, 2):
            with pytest.raises(UserError, match=r"^data:row 1701: ") as error:
                tokenize_rows(rows, CHAT, workers=workers)
            errors.append(str(error.value))
        assert errors[0] == errors[1]

    def test_a_pass_can_be_sent_to_a_process_that_is_not_a_copy(self) -> None:
        encoder = functools.partial(tokenization._encoder, CHAT, EncodingOptions())
        run = tokenization.RowPass.over(conversations(5), encoder, RowChecks("data", EncodingOptions(), 0.05), 0)
        copy = pickle.loads(pickle.dumps(run))
        np.testing.assert_array_equal(copy.encode(0).tokens, run.encode(0).tokens)

    def test_rows_of_a_split(self) -> None:
        _, held_out = split_rows(conversations(2000), 0.6, seed=0)
        equal(tokenize_rows(held_out, CHAT, workers=2), tokenize_rows(held_out, CHAT, workers=0))


def test_the_parts_of_a_mixture_may_differ_in_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    rows = load_rows(f"{tmp_path}/a.jsonl:0.7,{tmp_path}/b.jsonl:0.3")
    dataset = tokenize_rows(rows, PLAIN, max_dropped_share=0.5)
    assert [text for text, _ in texts(dataset)] == ["one</s>", "two</s>", "1+1=2</s>"]
    assert dataset.parts is not None
    assert dataset.parts.tolist() == [0, 0, 1]
    assert dataset.shares == (0.7, 0.3)
    assert [Path(name).name for name in dataset.part_names] == ["a.jsonl", "b.jsonl"]
    assert dataset.source_rows.tolist() == [0, 2, 3]

    other_shares = tokenize_rows(
        load_rows(f"{tmp_path}/a.jsonl:0.5,{tmp_path}/b.jsonl:0.5"), PLAIN, max_dropped_share=0.5
    )
    assert other_shares.fingerprint != dataset.fingerprint, "another order of the data"
    (tmp_path / "b.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+1=", "completion": "2"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl:1: the row is only a prompt"):
        tokenize_rows(load_rows(f"{tmp_path}/a.jsonl:0.7,{tmp_path}/b.jsonl:0.3"), PLAIN, max_dropped_share=0.5)


def test_a_template_that_writes_the_date_is_told_of() -> None:
    tokenizer = family_tokenizer("chatml")
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    with pytest.warns(UserWarning, match="the chat template writes today's date"):
        tokenize_rows(rows, tokenizer)


def test_columns_that_the_format_does_not_know_are_told() -> None:
    rows = [{"instruction": "a", "output": "b", "history": [["c", "d"]], "id": 3, "w": 1.0}]
    report = tokenize_rows(rows, byte_tokenizer(), EncodingOptions(weight_column="w")).report
    assert report.unread_columns == ("history", "id")
    chosen = {"prompt": "a", "chosen": "b", "extra": "c"}
    options = EncodingOptions(columns={"completion": "chosen"})
    assert tokenize_rows([chosen], byte_tokenizer(), options).report.unread_columns == ("extra",)
