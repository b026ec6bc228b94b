"""The start-up audit: its numbers against counts by hand, what it prints word for word, and when it warns."""

import io
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import MISTRAL, byte_tokenizer, family_tokenizer, sentencepiece_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import refused

from relax import report
from relax.data.audit import Audit, audit, audit_lines, save_audit, warnings_of
from relax.data.audit.fill import Fill
from relax.data.audit.histogram import Histogram
from relax.data.audit.marked_row import SHOWN_TOKENS, MarkedRow, mark_row
from relax.data.audit.shares import share_of
from relax.data.tokens.encoding import tokenize_row
from relax.data.tokens.tokenization import tokenize_rows
from relax.data.tokens.tokenized import Sample, TokenizationReport, TokenizedDataset
from relax.tasks.sorting import Sorting

CHAT = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four.\nSurely."},
]


def made(*lengths: int, **counts: Any) -> TokenizedDataset:
    """Different rows of these lengths, all but the first token trained; ``counts`` go into the report."""
    samples = [Sample.of(np.arange(n) % 50 + 60 + at % 50, np.ones(n)) for at, n in enumerate(lengths)]
    dropped = Counter(counts.get("dropped", {}))
    data = TokenizedDataset.from_samples(samples, report=TokenizationReport(rows=len(samples) + dropped.total()))
    for name, count in (counts | {"dropped": dropped}).items():
        setattr(data.report, name, count)
    return data


def lines_of(data: TokenizedDataset, *cut: Any, **options: Any) -> list[str]:
    return audit_lines(audit(data, byte_tokenizer(), *cut, **options))


def text_of(row: MarkedRow, kind: str) -> list[str]:
    return [stretch.text for stretch in row.stretches if stretch.kind == kind]


# Lengths


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=60))
def test_a_histogram_counts_every_row_once_in_few_bins(lengths: list[int]) -> None:
    histogram = Histogram.of(np.array(lengths))
    edges = histogram.edges
    assert (edges[0], edges[-1]) == (min(lengths), max(lengths) + 1)
    assert [*edges] == sorted({*edges})
    assert len(histogram.counts) <= 13
    assert list(histogram.counts) == [sum(low <= n < high for n in lengths) for low, high in pairwise(edges)]


def test_bins_are_round_and_grow_for_a_long_tail() -> None:
    assert Histogram.of(np.array([7, 12, 38, 63])).labels == [
        "7-9",
        "10-19",
        "20-29",
        "30-39",
        "40-49",
        "50-59",
        "60-63",
    ]
    assert Histogram.of(np.array([3, 4, 4, 6])).labels == ["3", "4", "5", "6"]
    assert Histogram.of(np.array([20] * 9 + [1_000])).labels == [
        *("20-31", "32-63", "64-127", "128-255", "256-511", "512-1,000")
    ]


def test_bars_are_proportional_and_a_single_row_is_seen() -> None:
    histogram = Histogram((1, 2, 3, 4), (1000, 500, 1))
    assert histogram.lines() == [
        f"1  {'█' * 32} 1,000   66.6%",
        f"2  {'█' * 16}{' ' * 16}   500   33.3%",
        f"3  ▏{' ' * 31}     1    0.1%",
    ]
    assert "▏" not in Histogram((1, 2, 3), (5, 0)).lines()[1]


def test_percentiles_are_lengths_that_rows_have() -> None:
    lengths = audit(made(*range(1, 101)), byte_tokenizer()).lengths
    assert (lengths.p5, lengths.p50, lengths.p95, lengths.p99, lengths.longest) == (5, 50, 95, 99, 100)


def test_a_share_is_never_rounded_to_none_or_all() -> None:
    assert [share_of(n, 100_000) for n in (0, 1, 4_321, 99_999, 100_000)] == [
        "0.0%",
        "<0.1%",
        "4.3%",
        ">99.9%",
        "100.0%",
    ]


# Micro-batches


def test_padding_is_what_a_padded_batch_computes_beyond_its_tokens() -> None:
    lengths, batches = np.array([10, 4, 6, 2]), [np.array([0, 1]), np.array([2]), np.array([3])]
    fill = Fill.of(lengths, batches, packed=False)
    assert fill == Fill(packed=False, capacity=None, micro_batches=3, tokens=22, slots=28, largest=20)
    line = next(line for line in lines_of(made(*lengths), [[0, 1], [], [2], [3]]) if "batches" in line)
    assert line == "  batches      padded, 21.4% of the tokens are padding in 3 micro-batches, the largest 20 tokens"


def test_packed_batches_are_measured_against_their_capacity() -> None:
    lengths, batches = np.array([10, 4, 6, 25]), [np.array([0, 2]), np.array([1]), np.array([3])]
    fill = Fill.of(lengths, batches, packed=True, capacity=20)
    assert fill is not None
    assert (fill.tokens, fill.slots, fill.largest) == (45, 20 + 20 + 25, 25)  # one document is longer than allowed
    assert Fill.of(lengths, batches, packed=True) == Fill(True, None, 3, tokens=45, slots=45, largest=25)
    assert "packed, 69.2% of 20 tokens filled in 3 micro-batches" in "".join(
        lines_of(made(*lengths), batches, True, 20)
    )
    assert Fill.of(lengths, [], packed=True) is None


def test_a_mixture_tells_rows_tokens_and_passes_of_each_part() -> None:
    data = replace(made(10, 10, 30), parts=np.array([0, 0, 1], dtype=np.int16), part_names=("a.jsonl", "b"))
    seen = audit(data, byte_tokenizer(), [[0, 2], [2, 1], [2, 2]])
    assert [(part.rows, part.drawn, part.passes) for part in seen.parts] == [(2, 2, 1.0), (1, 4, 4.0)]
    assert [round(part.share_of_tokens, 4) for part in seen.parts] == [round(20 / 140, 4), round(120 / 140, 4)]
    lines = audit_lines(seen)
    assert "  mixture      a.jsonl  33.3% of the rows,  14.3% of the tokens: 2 rows, read 1.00x an epoch" in lines
    assert "               b        66.7% of the rows,  85.7% of the tokens: 1 row, read 4.00x an epoch" in lines


# The row that is shown


def test_a_row_is_shown_with_its_special_tokens_and_its_trained_ones_marked() -> None:
    tokenizer = family_tokenizer("chatml")
    row = mark_row(tokenize_row({"messages": CHAT}, tokenizer), 3, tokenizer)
    asked = "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n"
    assert [(each.kind, each.text) for each in row.stretches] == [
        ("read", asked),
        ("trained", "Four.\nSurely.<|im_end|>"),
    ]


def test_spaces_between_stretches_survive_a_sentencepiece_tokenizer() -> None:
    tokenizer = sentencepiece_tokenizer(MISTRAL)
    sample = tokenize_row({"messages": CHAT[1:]}, tokenizer)
    row = mark_row(sample, 1, tokenizer)
    assert text_of(row, "trained") == [" Four.\nSurely.</s>"]
    assert "".join(each.text for each in row.stretches) == tokenizer.decode(sample.input_ids)


def test_a_long_row_keeps_the_borders_of_what_is_trained() -> None:
    tokenizer = byte_tokenizer()
    prompt, completion = "P" * 5_000 + "question?", "answer: " + "A" * 5_000
    row = mark_row(tokenize_row({"prompt": prompt, "completion": completion}, tokenizer), 1, tokenizer)
    before, ahead = text_of(row, "read")
    begin, end = text_of(row, "trained")
    assert before == "P" * 80
    assert ahead.endswith("PPquestion?")
    assert begin.startswith("answer: AA")
    assert end.endswith("AA</s>")
    assert text_of(row, "left out") == [" … 4,849 tokens … ", " … 4,849 trained tokens … "]
    assert sum(len(text) for text in (before, ahead, begin)) + len(end) - len("</s>") + 1 == SHOWN_TOKENS


def test_of_many_turns_the_first_and_last_are_shown() -> None:
    tokenizer = family_tokenizer("chatml")
    turns = [CHAT[1], CHAT[2]] * 200
    row = mark_row(tokenize_row({"messages": turns}, tokenizer), 1, tokenizer)
    shown = "".join(stretch.text for stretch in row.stretches)
    assert shown.startswith("<|im_start|>user")
    assert shown.endswith("Surely.<|im_end|>")
    assert len(shown) < 1_000
    assert "trained) tokens" in shown


def test_what_a_row_holds_cannot_drive_the_terminal() -> None:
    tokenizer = byte_tokenizer()
    text = "a\x1b[2Jb\rc\x85d\u202ee\u2028f\tg"
    row = mark_row(tokenize_row({"text": text}, tokenizer), 1, tokenizer)
    assert "".join(text_of(row, "read") + text_of(row, "trained")) == "a\\x1b[2Jb\\rc\\x85d\\u202ee\\u2028f\tg</s>"


# What is printed


def test_the_audit_of_the_built_in_task_word_for_word() -> None:
    task = Sorting()
    tokenizer = task.build_tokenizer()
    data = tokenize_rows(task.train_rows(100), tokenizer)
    assert audit_lines(audit(data, tokenizer, np.arange(100).reshape(10, 10), packed=True)) == [
        "Training data: 100 rows, 1,388 tokens, 50.0% of them trained",
        "  row lengths  p5 10   median 14   p95 18   p99 18   longest 18 tokens",
        "               10-11  █████████████████████████▍       19   19.0%",
        "               12-13  ████████████████████████████████ 24   24.0%",
        "               14-15  ████████████████████████████     21   21.0%",
        "               16-17  █████████████████████▍           16   16.0%",
        "                  18  ██████████████████████████▋      20   20.0%",
        "  batches      packed, no padding in 10 micro-batches, the largest 154 tokens",
        "  row 85       16 tokens, 8 of them trained (in ⟦ ⟧)",
        "  │ 3270866>⟦2370866<eos>⟧",
    ]


def test_dropped_and_cut_rows_are_told_with_reasons() -> None:
    dropped = {"empty text": 2, "no training target within max_length": 1}
    data = made(10, 20, 30, dropped=dropped, truncated=1, truncated_tokens=70)
    lines = lines_of(data)
    assert lines[0] == "Training data: 3 rows, 60 tokens, 95.0% of them trained"
    assert "  dropped      2 rows (33.3%): empty text" in lines
    assert "  dropped      1 row (16.7%): no training target within max_length" in lines
    assert "  cut          1 row (33.3%) to --max_length, 70 tokens lost" in lines


def test_weights_and_streams_are_told() -> None:
    data = replace(made(10, 20), row_weights=np.array([0.5, 2], dtype=np.float32))
    lines = lines_of(data, streamed=True)
    assert lines[0].startswith("Training data, the first rows of the stream: 2 rows")
    assert "  row weights  0.5 to 2, mean 1.25" in lines


def test_colours_replace_the_brackets_and_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    tokenizer = family_tokenizer("chatml")
    seen = audit(tokenize_rows([{"messages": CHAT}], tokenizer), tokenizer)
    plain, coloured = audit_lines(seen), audit_lines(seen, color=True)
    assert not any("\x1b" in line for line in plain)
    assert plain[-2:] == ["  │ ⟦Four.", "  │ Surely.<|im_end|>⟧"]
    assert coloured[-2].endswith("\x1b[1;32mFour.↵\x1b[0m")
    assert coloured[-1].endswith("\x1b[1;32mSurely.<|im_end|>\x1b[0m")
    assert not any("⟦" in line for line in coloured)


def test_the_same_seed_shows_the_same_row_and_another_one_another() -> None:
    data = made(*range(2, 50))
    numbers = [audit(data, byte_tokenizer(), seed=seed).example.number for seed in (0, 0, 1, 2)]
    assert numbers[0] == numbers[1]
    assert len({*numbers}) > 1


# Warnings


def test_clean_data_give_no_warning() -> None:
    rows = [{"prompt": f"{n}+{n}=", "completion": f"{2 * n}"} for n in range(100)]
    tokenizer = byte_tokenizer()
    data = tokenize_rows(rows, tokenizer)
    assert warnings_of(audit(data, tokenizer, np.arange(100).reshape(10, 10))) == []


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"without_end_of_turn": 1}, ("not ending on a trained end of turn: 1 row (10.0%)", "chat template")),
        ({"trained_tokens": 1}, ("trained: only 0.5% of the tokens", "--train_on")),
        ({"truncated": 1}, ("cut to --max_length: 1 row (10.0%)", "--truncation=drop")),
        ({"double_bos": 2}, ("beginning with the bos token twice: 2 rows (20.0%)", "take one out")),
        ({"unknown_tokens": 2}, ("unknown to the tokenizer: 1.0% of the tokens", "the model's own")),
        ({"duplicates": 3}, ("equal to an earlier row: 3 rows (30.0%)", "take such rows out")),
    ],
)
def test_each_warning_tells_how_much_and_what_to_do(counts: dict[str, int], words: tuple[str, str]) -> None:
    [warning] = warnings_of(audit(made(*range(15, 25), **counts), byte_tokenizer()))
    assert all(word in warning for word in words), warning
    assert f"  warning: {warning}" in lines_of(made(*range(15, 25), **counts))


def test_padding_and_worn_parts_are_warned_of() -> None:
    data = replace(made(100, 5), parts=np.array([0, 1], dtype=np.int16), part_names=("a", "b"))
    assert warnings_of(audit(data, byte_tokenizer(), [[0, 1]])) == [
        "padding: 48% of what is computed; use --layout=packed if the model can, or --group_by_length"
    ]
    assert warnings_of(audit(data, byte_tokenizer(), [[0, 1, 1, 1, 1, 1]], True)) == [
        "read over and over in one epoch: b 5 times; lower the weight in --dataset"
    ]


def test_real_rows_with_a_double_bos_and_doubled_rows_are_found() -> None:
    tokenizer = byte_tokenizer(adds_bos=True)
    data = tokenize_rows([{"text": "<s><s>twice"}, {"text": "<s>once"}, {"text": "<s>once"}], tokenizer)
    double, repeated = warnings_of(audit(data, tokenizer))
    assert double.startswith("beginning with the bos token twice: 1 row (33.3%)")
    assert repeated.startswith("equal to an earlier row: 1 row (33.3%)")


# Where it goes


@pytest.fixture
def seen() -> Audit:
    data = replace(made(10, 20, 5), parts=np.zeros(3, dtype=np.int16), part_names=("caf\udce9.jsonl",))
    return audit(data, byte_tokenizer(), [[0, 1], [2]])


def test_the_folder_keeps_numbers_and_text(seen: Audit, tmp_path: Path) -> None:
    save_audit(seen, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "data_audit.json").read_text())
    assert kept.pop("warnings") == warnings_of(seen)
    assert kept == json.loads(json.dumps(asdict(seen)))
    assert kept["lengths"]["longest"] == 20
    text = (tmp_path / "run" / "data_audit.txt").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "Training data: 3 rows, 35 tokens, 91.4% of them trained"
    assert "caf\\udce9.jsonl" in text  # a file name that is not UTF-8
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data_audit.json", "data_audit.txt"]


def test_a_folder_that_is_a_file_is_refused_in_one_line(seen: Audit, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with refused("cannot write data_audit.json"):
        save_audit(seen, tmp_path / "run")


def test_the_audit_is_printed_and_kept(seen: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.say_audit(seen, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("Training data: 3 rows")
    assert "\x1b" not in printed
    assert (tmp_path / "data_audit.txt").exists()
    assert any("data_audit.txt" in line for line in report.describe_results(tmp_path, "none"))


def test_an_output_that_knows_ascii_only_does_not_stop_the_run(seen: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    report.say_audit(seen, None)
    assert b"caf?.jsonl 100.0% of the rows" in out.getvalue()


def test_other_ranks_are_silent(
    seen: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax.report.is_main_process", lambda: False)
    report.say_audit(seen, tmp_path)
    assert capsys.readouterr().out == ""
    assert not any(tmp_path.iterdir())
