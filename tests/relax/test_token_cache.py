"""Kept tokens: found again, never out of date, whole or not there, made by one process for all, never in the way."""

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import ALPACA, CHATML, byte_tokenizer
from transformers import PreTrainedTokenizer

from relax.data import EncodingOptions, TokenizedDataset, load_rows, split_rows, tokenize_rows
from relax.data.tokens import tokenization as module
from relax.data.tokens.cache_key import cache_key
from relax.data.tokens.token_cache import default_folder
from relax.errors import UserError

CHAT = byte_tokenizer(CHATML, eos_token="<|im_end|>")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}?" + "x" * (n % 7), "w": n % 3}) + "\n" for n in range(1200)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each block that was tokenized."""
    blocks: list[int] = []
    encode = module.RowPass.encode

    def counted(self: Any, block: int) -> Any:
        blocks.append(block)
        return encode(self, block)

    monkeypatch.setattr(module.RowPass, "encode", counted)
    return blocks


def tokenize(source: Path, folder: Path | None, tokenizer: Any = CHAT, **options: Any) -> TokenizedDataset:
    rows = load_rows(str(source))
    return tokenize_rows(rows, tokenizer, EncodingOptions(**options), cache=folder, max_dropped_share=0.4)


def equal(one: TokenizedDataset, other: TokenizedDataset) -> None:
    for name in ("tokens", "loss_mask", "offsets", "source_rows", "num_targets", "row_weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        if getattr(one, name) is not None:
            assert getattr(one, name).dtype == getattr(other, name).dtype
    assert (one.report, one.fingerprint) == (other.report, other.fingerprint)


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def test_a_second_run_does_not_tokenize_and_gets_the_same(source: Path, folder: Path, encoded: list[int]) -> None:
    options: dict[str, Any] = {"max_length": 8, "weight_column": "w"}
    fresh = tokenize(source, None, **options)
    assert encoded == [0, 1]
    first = tokenize(source, folder, **options)
    assert encoded == [0, 1, 0, 1]
    second = tokenize(source, folder, **options)
    assert encoded == [0, 1, 0, 1], "read, not made"
    equal(first, fresh)
    equal(second, fresh)
    for dataset in (first, second):
        assert isinstance(dataset.tokens.base, np.memmap)
        assert not dataset.tokens.flags.writeable
    [entry] = entries(folder)
    assert {path.name for path in entry.iterdir()} == {
        "tokens.bin", "loss_mask.bin", "offsets.npy", "source_rows.npy", "num_targets.npy", "row_weights.npy",
        "cache.json",
    }  # fmt: skip


def splits_special_tokens() -> Any:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    tokenizer.split_special_tokens = True  # "<|im_end|>" in a text is ten tokens
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "options"),
    [
        (lambda: byte_tokenizer(ALPACA, eos_token="<|im_end|>"), {}),
        (lambda: byte_tokenizer(CHATML, eos_token="<|im_start|>"), {}),
        (lambda: byte_tokenizer(CHATML, eos_token="<|im_end|>", merges=[("x", "x")]), {}),
        (splits_special_tokens, {}),
        (lambda: CHAT, {"max_length": 8}),
        (lambda: CHAT, {"max_length": 30, "truncation": "drop"}),
        (lambda: CHAT, {"train_on": "all"}),
        (lambda: CHAT, {"weight_column": "w"}),
        (lambda: CHAT, {"format": "text"}),
        (lambda: CHAT, {"columns": {"text": "text"}}),
    ],
    ids=["template", "eos", "merges", "split", "max_length", "truncation", "train_on", "weights", "format", "columns"],
)
def test_the_key_covers(source: Path, tokenizer: Callable[[], Any], options: dict[str, Any]) -> None:
    rows = load_rows(str(source))
    plain = cache_key(rows, CHAT, EncodingOptions())
    assert plain == cache_key(load_rows(str(source)), byte_tokenizer(CHATML, eos_token="<|im_end|>"), EncodingOptions())
    assert plain != cache_key(rows, tokenizer(), EncodingOptions(**options))


def test_the_key_covers_the_rows_and_which_of_them(source: Path) -> None:
    rows = load_rows(str(source))
    parts = split_rows(rows, 0.5, seed=0)
    keys = {cache_key(some, CHAT, EncodingOptions()) for some in (rows, *parts)}
    source.write_text(source.read_text().replace("700?", "701?"))
    keys.add(cache_key(load_rows(str(source)), CHAT, EncodingOptions()))
    assert len(keys) == 4
    assert None not in keys


def test_the_key_does_not_depend_on_how_the_tokenizer_was_used_last(source: Path) -> None:
    rows, tokenizer = load_rows(str(source)), byte_tokenizer(CHATML, eos_token="<|im_end|>")
    before = cache_key(rows, tokenizer, EncodingOptions())
    tokenizer(["a", "bbb"], padding=True, truncation=True, max_length=2)
    assert cache_key(rows, tokenizer, EncodingOptions()) == before


def test_the_key_is_the_same_in_another_process(source: Path) -> None:
    program = (
        "import sys; from byte_tokenizers import *; from relax.data import load_rows, EncodingOptions;"
        "from relax.data.tokens.cache_key import cache_key;"
        "tokenizer = byte_tokenizer(CHATML, eos_token='<|im_end|>');"
        "print(cache_key(load_rows(sys.argv[1]), tokenizer, EncodingOptions(max_length=9)))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    said = subprocess.check_output([sys.executable, "-c", program, str(source)], env=environment, text=True)
    assert said.split()[-1] == cache_key(load_rows(str(source)), CHAT, EncodingOptions(max_length=9))


def test_rows_without_a_fingerprint_are_not_kept(folder: Path, encoded: list[int]) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    for _ in range(2):
        tokenize_rows(rows, CHAT, cache=folder)
    assert encoded == [0, 0]
    assert not folder.exists()


def test_a_mixture_from_the_cache_is_one(source: Path, folder: Path, encoded: list[int]) -> None:
    other = source.with_name("other.jsonl")
    other.write_text('{"text": "a"}\n' * 3)
    rows = load_rows(f"{source}:0.75,{other}:0.25")
    fresh, made, read = (tokenize_rows(rows, CHAT, cache=cache) for cache in (None, folder, folder))
    assert encoded == [0, 1, 0, 1]
    other_shares = tokenize_rows(load_rows(f"{source}:0.5,{other}:0.5"), CHAT, cache=folder)
    assert encoded == [0, 1, 0, 1], "the same tokens"
    assert (other_shares.shares, other_shares.fingerprint != made.fingerprint) == ((0.5, 0.5), True)
    for dataset in (made, read):
        equal(dataset, fresh)
        assert (dataset.shares, dataset.part_names) == (fresh.shares, fresh.part_names)
        np.testing.assert_array_equal(dataset.parts, [0] * 1200 + [1] * 3)


class Letters(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer written in Python."""

    vocab_size = 128

    def __init__(self, **names: Any) -> None:
        super().__init__(eos_token="\x00", **names)

    def get_vocab(self) -> dict[str, int]:
        return {chr(at): at for at in range(128)}

    def _tokenize(self, text: str) -> list[str]:
        return [*text]

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_tokens_of_a_slow_tokenizer_are_not_kept_and_that_is_told(source: Path, folder: Path) -> None:
    with pytest.warns(UserWarning, match="a tokenizer written in Python cannot be named: the tokens are not kept"):
        dataset = tokenize(source, folder, Letters())
    assert dataset[0].input_ids.tolist() == [*b"0?", 0]
    assert not folder.exists()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "tokens cut off": lambda entry: os.truncate(entry / "tokens.bin", 100),
    "mask gone": lambda entry: (entry / "loss_mask.bin").unlink(),
    "manifest gone": lambda entry: (entry / "cache.json").unlink(),
    "manifest of another kind": lambda entry: (entry / "cache.json").write_text("[]"),
    "manifest cut off": lambda entry: os.truncate(entry / "cache.json", 50),
    "manifest binary": lambda entry: (entry / "cache.json").write_bytes(b"\xff\xfe"),
    "offsets overwritten": lambda entry: np.save(entry / "offsets.npy", np.zeros(1201, dtype=np.int64)),
    "offsets empty": lambda entry: (entry / "offsets.npy").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_made_anew(source: Path, folder: Path, damage: Callable[[Path], Any]) -> None:
    whole = tokenize(source, None)
    tokenize(source, folder)
    [entry] = entries(folder)
    damage(entry)
    with pytest.warns(UserWarning, match=f"the kept tokens in {entry} are damaged, they are made anew"):
        equal(tokenize(source, folder), whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        equal(tokenize(source, folder), whole)


def test_a_bad_row_leaves_nothing_behind(source: Path, folder: Path) -> None:
    with source.open("a") as file:
        file.write('{"text": null}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:1201: "):
        tokenize(source, folder)
    assert entries(folder) == []
    source.write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="none of the 1 rows is left"):
        tokenize(source, folder)
    assert entries(folder) == []


def test_kept_tokens_are_judged_by_this_run_s_limit(source: Path, folder: Path, encoded: list[int]) -> None:
    with source.open("a") as file:
        file.write('{"text": ""}\n')
    rows = load_rows(str(source))
    tokenize_rows(rows, CHAT, cache=folder)
    with pytest.raises(UserError, match="1 of 1201 rows have nothing to learn .*--max_dropped_share=0 allows"):
        tokenize_rows(rows, CHAT, cache=folder, max_dropped_share=0)
    assert encoded == [0, 1], "the second time they were read"


def test_leftovers_of_a_killed_process_are_removed(source: Path, folder: Path) -> None:
    tokenize(source, folder)
    [entry] = entries(folder)
    entry.rename(folder / f"{entry.name}.tmp-999999")
    tokenize(source, folder)
    assert entries(folder) == [entry]


def test_a_folder_that_cannot_be_used_is_warned_of_and_gone_without(source: Path, tmp_path: Path) -> None:
    fresh = tokenize(source, None)
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="data: the tokens cannot be kept in .*below for the next run .*--data_cache"):
        equal(tokenize(source, tmp_path / "file" / "below"), fresh)
    assert multiprocessing.active_children() == []


def _fill(limit: int, source: Path, folder: Path) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # what a full disk does: a write fails half-way
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = tokenize_rows(load_rows(str(source)), CHAT, cache=folder, workers=2)
    assert "cannot be kept" in str(caught[0].message)
    assert len(dataset) == 1200
    assert entries(folder) == []
    assert multiprocessing.active_children() == []


@pytest.fixture
def fork() -> Any:
    return multiprocessing.get_context("fork")


def test_a_disk_that_fills_up_is_gone_without(source: Path, folder: Path, fork: Any) -> None:
    process = fork.Process(target=_fill, args=(20_000, source, folder))
    process.start()
    process.join()
    assert process.exitcode == 0


def _rank(source: Path, folder: Path, results: Any) -> None:
    made: list[int] = []
    encode = module.RowPass.encode

    def counted(self: Any, block: int) -> Any:
        made.append(block)
        return encode(self, block)

    module.RowPass.encode = counted  # type: ignore[method-assign]
    results.put((tokenize(source, folder).fingerprint, len(made)))


def test_several_ranks_tokenize_once(source: Path, folder: Path, fork: Any) -> None:
    results = fork.Queue()
    ranks = [fork.Process(target=_rank, args=(source, folder, results)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    got = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert len({fingerprint for fingerprint, _ in got}) == 1
    assert sorted(made for _, made in got) == [0, 0, 2]


def test_where_they_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RELAX_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "tokenized"
    monkeypatch.delenv("RELAX_CACHE")
    assert default_folder() == Path.home() / ".cache/relax/tokenized"
