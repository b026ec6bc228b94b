"""Preference rows become pairs of token ids: read as a reward model reads them, dropped where they say nothing."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizers import byte_tokenizer, family_tokenizer, sentencepiece_tokenizer
from tiny_models import refused

from relax.data import load_rows, split_rows
from relax.data.pairs import Pair, PairDataset, collate_pairs, tokenize_pairs
from relax.data.sources.loading import load_rows as load
from relax.rewards.reading import AnswerReader
from relax.tasks.sorting import Sorting

ROWS = [
    {"prompt": "2+2=", "chosen": "4", "rejected": "22, or so I think", "margin": "1.5"},
    {"prompt": "Hi", "chosen": " there, how are you?", "rejected": "!", "margin": 0},
    {"chosen": "no prompt at all", "rejected": "no prompt", "margin": 0.25},
]
PLAIN = byte_tokenizer(None, bos_token=None)


def ids(pairs: PairDataset) -> list[tuple[list[int], list[int]]]:
    return [(pairs[i].chosen.tolist(), pairs[i].rejected.tolist()) for i in range(len(pairs))]


def pairs_of(rows: Any, tokenizer: Any = PLAIN, max_length: int = 100, **options: Any) -> PairDataset:
    return tokenize_pairs(rows, AnswerReader(tokenizer, max_length), **options)


def test_text_is_prompt_and_answer_as_one_with_what_the_tokenizer_opens_a_text_with() -> None:
    for tokenizer in (PLAIN, sentencepiece_tokenizer()):
        expected = [
            tuple(tokenizer(row.get("prompt", "") + row[side]).input_ids for side in ("chosen", "rejected"))
            for row in ROWS
        ]
        assert ids(pairs_of(ROWS, tokenizer)) == expected


def test_conversations_are_written_by_the_template_text_as_one_too() -> None:
    tokenizer = family_tokenizer("chatml")
    asked, tools = [{"role": "user", "content": "Hi"}], None
    row: dict[str, Any] = {"prompt": asked, "tools": tools}
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    [(chosen, rejected)] = ids(pairs_of([row | answers], tokenizer))
    texts = [tokenizer.apply_chat_template([*asked, *turn], tokenize=False) for turn in answers.values()]
    assert [chosen, rejected] == tokenizer(texts, add_special_tokens=False).input_ids
    text = {"prompt": "Hi", "chosen": "chosen", "rejected": "rejected"}
    assert ids(pairs_of([text], tokenizer)) == [(chosen, rejected)]
    whole = {side: [*asked, *turn] for side, turn in answers.items()}  # the prompt is what both begin with
    assert ids(pairs_of([whole], tokenizer)) == [(chosen, rejected)]


def test_what_is_too_long_loses_its_beginning_and_is_counted() -> None:
    pairs = pairs_of(ROWS, max_length=8)
    assert ids(pairs)[0] == (PLAIN("2+2=4").input_ids, PLAIN("2+2=22, or so I think").input_ids[-8:])
    assert (pairs.report.truncated, pairs.longest_answer) == (3, 8)
    assert "3 pairs cut to --max_length" in pairs.describe()
    opened = pairs_of(ROWS, byte_tokenizer(None, adds_bos=True), max_length=8)
    bos = byte_tokenizer(None, adds_bos=True).bos_token_id
    assert ids(opened)[0][1][0] == bos, "what the tokenizer opens a text with stays"


def test_margins_are_one_for_all_or_each_rows_own() -> None:
    assert pairs_of(ROWS, margin=0.5).margins.tolist() == [0.5] * 3
    assert pairs_of(ROWS, margin_column="margin").margins.tolist() == [1.5, 0.0, 0.25]
    for cell, words in ((-1, "at least 0, got -1"), ("much", "must hold a number"), (float("inf"), "must be finite")):
        bad = [ROWS[0], ROWS[1] | {"margin": cell}]
        with refused("training data:row 2: --margin_column: 'margin'", words):
            pairs_of(bad, margin_column="margin")
    with refused("row 1: --margin_column: no 'strength' in this row"):
        pairs_of(ROWS, margin_column="strength")


def test_pairs_without_a_difference_are_dropped_named_and_counted() -> None:
    same = {"prompt": "x", "chosen": "yes\u00e9", "rejected": "yes\u00e8"}
    tokenizer = Sorting().build_tokenizer()  # both are "???"
    rows = [{"prompt": "1", "chosen": "2", "rejected": "3"}, same]
    with pytest.warns(UserWarning, match=r"1 of 2 pairs are left out \(1 x both answers have the same tokens\).*row 2"):
        pairs = pairs_of(rows, tokenizer, max_dropped_share=0.5)
    assert (len(pairs), pairs.source_rows.tolist(), pairs.report.rows_kept) == (1, [0], 1)
    with refused("1 of 2 pairs say nothing about what is better", "--max_dropped_share=0.05"):
        pairs_of(rows, tokenizer)
    far = {"prompt": "", "chosen": "a" + "z" * 30, "rejected": "b" + "z" * 30}
    with pytest.warns(UserWarning, match=r"both answers are the same within max_length.*row 4"):
        pairs = pairs_of([*ROWS, far], max_length=20, margin_column="margin", max_dropped_share=0.5)
    assert pairs.margins.tolist() == [1.5, 0.0, 0.25], "of the rows that are kept"
    with refused("raise --max_length=20"):
        pairs_of([far], max_length=20)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "chosen": "same", "rejected": "same"}, ["row 2: 'chosen' and 'rejected' are the same"]),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, ["row 2: 'chosen' is empty"]),
        ({"prompt": "x", "chosen": None, "rejected": "b"}, ["row 2", "'chosen'"]),
        ({"prompt": [{"role": "user", "content": "x"}], "chosen": [{"role": "assistant", "content": "a"}],
          "rejected": [{"role": "assistant", "content": "b"}]}, ["row 2", "no chat template", "messages"]),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(row: dict[str, Any], words: list[str]) -> None:
    with refused(*words):
        pairs_of([ROWS[0], row])


def test_rows_of_another_kind_are_refused_and_columns_may_be_called_otherwise() -> None:
    with refused("training data:row 1", "learns from preference pairs", "needs a column 'chosen'", "completion"):
        pairs_of([{"prompt": "a", "completion": "b"}])
    with refused("training data: no rows"):
        pairs_of([])
    renamed = [{"question": row.get("prompt", ""), "good": row["chosen"], "bad": row["rejected"]} for row in ROWS]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert ids(pairs_of(renamed, columns=columns)) == ids(pairs_of(ROWS))


def test_a_second_run_takes_them_from_the_cache_whatever_the_processes(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    lines = [f"{i},{i * 7 % 11},{i * 5 % 13 + 20},{i % 3}" for i in range(2500)]
    file.write_text("\n".join(["prompt,chosen,rejected,margin", *lines]))
    rows, _ = split_rows(load(str(file)), 0.2, seed=0)
    kept = tmp_path / "cache"
    options = {"margin_column": "margin", "cache": kept}
    first, again, other = (pairs_of(rows, workers=workers, **options) for workers in (2, 0, 0))
    assert len(list(kept.glob("*/cache.json"))) == 1
    assert first.fingerprint == again.fingerprint == other.fingerprint
    assert ids(first) == ids(again) == ids(pairs_of(rows, workers=0))
    assert first.margins.tolist() == [float(rows[i]["margin"]) for i in range(len(rows))]
    pairs_of(rows, max_length=5, **options)
    assert len(list(kept.glob("*/cache.json"))) == 2, "another reading is kept for itself"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pairs_of(load_rows(str(file)), **options).fingerprint != first.fingerprint


def pair(chosen: int, rejected: int, start: int) -> Pair:
    return Pair(np.arange(start, start + chosen), np.arange(start + 50, start + 50 + rejected), start / 10)


@pytest.mark.parametrize("packed", [True, False])
def test_a_micro_batch_knows_the_last_token_of_every_answer(packed: bool) -> None:
    pairs = [pair(3, 5, 1), pair(7, 1, 20), pair(2, 2, 40)]
    batch = collate_pairs(pairs, [11, 12, 13], packed=packed, pad_id=9)
    last = batch.input_ids.flatten()[batch.positions].tolist()
    assert last == [3, 26, 41, 55, 70, 91]
    assert batch.margins.tolist() == pytest.approx([0.1, 2.0, 4.0])
    assert (batch.rows, batch.num_tokens, batch.step_sequences, len(batch.targets)) == ([11, 12, 13], 20, 3.0, 0)
    assert batch.weights.tolist() == [1.0] * 3
    assert batch.input_ids.shape == ((1, 20) if packed else (6, 7))
    moved = batch.to("cpu")
    assert torch.equal(moved.margins, batch.margins)


def test_what_a_pair_takes_of_a_micro_batch_depends_on_its_padding() -> None:
    pairs = pairs_of(ROWS)
    both = np.array([[len(side) for side in each] for each in ids(pairs)])
    assert pairs.lengths.tolist() == both.sum(axis=1).tolist()
    assert PairDataset(pairs.samples, pairs.margins, padded=True).lengths.tolist() == (2 * both.max(axis=1)).tolist()
    with pytest.raises(IndexError):
        pairs[3]
