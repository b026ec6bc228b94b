"""Patterns, lists and weighted mixtures as one set of rows; how their names are read; of which part a row is."""
# ruff: noqa: E501  (tables of literal messages)

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_files import ROWS, jsonl, message_of, texts, write, write_parquet

from relax.data import RowSubset, load_rows, split_rows
from relax.data.rows import Mixed, place
from relax.data.sources.mixture import Mixture, parts
from relax.data.sources.names import Part, split_parts
from relax.errors import UserError


@pytest.fixture(autouse=True)
def three_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", jsonl(texts("a", 3)))
    write_parquet("b.parquet", texts("b", 5))
    write("data/c.txt", "c0\nc1\n")


def refused(source: str) -> str:
    with pytest.raises(UserError) as error:
        load_rows(source)
    return message_of(error)


def test_a_pattern_is_its_files_in_the_order_of_their_names() -> None:
    write("data/a10.jsonl", jsonl(texts("ten", 2)))
    write("data/a2.jsonl", jsonl(texts("two", 1)))
    write("data/deep/er/a3.jsonl.gz", jsonl(texts("deep", 1)))
    write("data/folder.jsonl/x", "a folder is no file")

    rows = load_rows("data/*.jsonl")
    assert list(rows) == [rows[at] for at in range(3)] == [*texts("ten", 2), *texts("two", 1)]
    assert [place(rows, at, "") for at in range(3)] == ["data/a10.jsonl:1", "data/a10.jsonl:2", "data/a2.jsonl:1"]
    assert list(load_rows("data/**/*.jsonl*")) == [*rows, *texts("deep", 1)]
    assert list(load_rows("data/**/**/*.jsonl*")) == [*rows, *texts("deep", 1)], "no file twice"
    assert list(load_rows(str(Path("data/a?.[jx]sonl").resolve()))) == texts("two", 1)
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
    assert parts(rows).names == ("",), "files of one pattern are one part"

    before = rows.fingerprint
    Path("data/a2.jsonl").rename("data/a1.jsonl")
    assert load_rows("data/*.jsonl").fingerprint != before, "the order is part of the content"
    assert refused("data/*.csv") == "data/*.csv: no file fits this pattern"
    assert "data/folder.jsonl/x: a data file ends in" in refused("data/f*/*")
    with pytest.raises(UserError, match="a single file has no split 'test'"):
        load_rows("data/*.jsonl", "test")
    Path("data/b.jsonl").symlink_to("gone.jsonl")
    assert refused("data/*.jsonl") == "data/b.jsonl: cannot be read (No such file or directory)"


def test_a_file_whose_name_looks_like_a_pattern_or_a_list_is_a_file() -> None:
    for name in ("a[1].jsonl", "a,b.jsonl", "a:0.5", "x.jsonl:0.7,y.jsonl:0.3"):
        write(name if name.endswith("l") else f"{name}.jsonl", jsonl(texts(name, 2)))
    assert list(load_rows("a[1].jsonl")) == texts("a[1].jsonl", 2)
    assert list(load_rows("a,b.jsonl")) == texts("a,b.jsonl", 2)
    assert split_parts("x.jsonl:0.7,y.jsonl:0.3.jsonl") == [Part("x.jsonl:0.7,y.jsonl:0.3.jsonl", None)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.jsonl", [("a.jsonl", None)]),
        ("a.jsonl,b.parquet", [("a.jsonl", None), ("b.parquet", None)]),
        ("a.jsonl:0.7,b.parquet:3e-1", [("a.jsonl", 0.7), ("b.parquet", 0.3)]),
        (" a.jsonl : 0.7, b.parquet:0.3 ", [("a.jsonl", 0.7), ("b.parquet", 0.3)]),
        ("org/name:2,data/*.txt:1", [("org/name", 2.0), ("data/*.txt", 1.0)]),
        ("C:\\data\\a.jsonl:0.5,C:\\b.jsonl:0.5", [("C:\\data\\a.jsonl", 0.5), ("C:\\b.jsonl", 0.5)]),
        ("C:\\a.jsonl,b:c.jsonl", [("C:\\a.jsonl", None), ("b:c.jsonl", None)]),
        ("p,q.jsonl:1,a.jsonl:2", [("p,q.jsonl", 1.0), ("a.jsonl", 2.0)]),
        ("a.jsonl,p,q.jsonl", [("a.jsonl", None), ("p,q.jsonl", None)]),
        ("r:1,a.jsonl", [("r:1", None), ("a.jsonl", None)]),
    ],
)
def test_how_the_name_of_a_mixture_is_read(source: str, expected: list[tuple[str, float | None]]) -> None:
    write("p,q.jsonl", "{}")
    write("r:1", "{}")
    assert split_parts(source) == [Part(*part) for part in expected]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.jsonl:0.7,b.parquet", "a.jsonl:0.7,b.parquet: give a weight to all parts or to none, 'b.parquet' has none"),
        ("a.jsonl:0,b.parquet:1", "a.jsonl:0,b.parquet:1: the weight of 'a.jsonl' must be a number above 0, got 0"),
        ("a.jsonl:-1,b.parquet:1", "a.jsonl:-1,b.parquet:1: the weight of 'a.jsonl' must be a number above 0, got -1"),
        ("a.jsonl:1,b.parquet:nan", "a.jsonl:1,b.parquet:nan: the weight of 'b.parquet' must be a number above 0, got nan"),
        ("a.jsonl:inf", "a.jsonl:inf: the weight of 'a.jsonl' must be a number above 0, got inf"),
        ("a.jsonl:70%,b.parquet:30%", "a.jsonl:70%: behind the colon goes the part's weight, a number, got '70%'"),
        ("a.jsonl:,b.parquet", "a.jsonl:: behind the colon goes the part's weight, a number, got ''"),
        ("a.jsonl,", "a.jsonl,: a mixture is a list of sources with commas between, got an empty one"),
        (":1,a.jsonl:1", ":1,a.jsonl:1: a mixture is a list of sources with commas between, got an empty one"),
        ("a.jsonl,x.jsonl", "x.jsonl: no such file; did you mean 'a.jsonl'?"),
    ],
)  # fmt: skip
def test_a_mixture_that_is_not_one_is_refused(source: str, message: str) -> None:
    assert refused(source) == message


def test_a_list_without_weights_is_all_rows_of_all() -> None:
    rows = load_rows("a.jsonl,b.parquet,data/*.txt")
    assert isinstance(rows, Mixed)
    assert list(rows) == [rows[at] for at in range(10)] == [*texts("a", 3), *texts("b", 5), *texts("c", 2)]
    assert (rows.part_names, rows.shares) == (("a.jsonl", "b.parquet", "data/*.txt"), ())
    assert (rows.place(2), rows.place(3), rows.place(9)) == ("a.jsonl:3", "b.parquet:row 1", "data/c.txt:2")
    with pytest.raises(IndexError):
        rows[10]


def test_weights_become_shares_of_each_part() -> None:
    rows = load_rows("a.jsonl:7,b.parquet:3")
    assert isinstance(rows, Mixture)
    assert rows.shares == pytest.approx((0.7, 0.3))
    assert len(rows) == 8, "the rows are all there: the shares say how often they are drawn"
    assert rows.parts_of(np.array([0, 2, 3, 7])).tolist() == [0, 0, 1, 1]
    copy = pickle.loads(pickle.dumps(rows))
    assert (list(copy), copy.fingerprint) == (list(rows), rows.fingerprint)


def test_the_parts_of_rows_are_seen_through_subsets() -> None:
    rows = load_rows("a.jsonl:1,b.parquet:1")
    train, validation = split_rows(rows, 0.25, seed=1)
    inner, _ = split_rows(train, 0.5, seed=2)
    for subset in (train, validation, inner):
        names, shares, of_rows = parts(subset)
        assert (names, shares, of_rows.dtype) == (("a.jsonl", "b.parquet"), (0.5, 0.5), np.int16)
        assert ["ab"[part] for part in of_rows] == [row["text"][0] for row in subset]
    names, shares, of_rows = parts(RowSubset(ROWS, np.array([1])))
    assert (names, shares, of_rows.tolist()) == (("",), (), [0])


def test_the_fingerprint_of_a_mixture_covers_its_rows_and_not_its_shares() -> None:
    sources = ("a.jsonl,b.parquet", "b.parquet,a.jsonl", "a.jsonl", "[ab].*")
    same, *others = [load_rows(source).fingerprint for source in sources]
    assert same not in others, "a pattern's files have one format, the parts of a mixture each their own"
    for weighted in ("a.jsonl:1,b.parquet:1", "a.jsonl:1,b.parquet:2"):
        assert load_rows(weighted).fingerprint == same, "other shares need no new tokens"
    write("a.jsonl", jsonl(texts("A", 3)))
    assert load_rows("a.jsonl,b.parquet").fingerprint != same
