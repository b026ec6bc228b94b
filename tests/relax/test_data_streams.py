"""Streams give the rows of their source, with places, from any row on, the same every time, in any process."""

import json
import os
import pickle
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from data_files import jsonl, message_of, texts, write, write_csv, write_parquet

from relax.data import load_rows
from relax.data.rows import place
from relax.data.sources.stream_mixture import turns
from relax.data.sources.streams import RowStream, open_stream
from relax.errors import UserError


@pytest.fixture(autouse=True)
def in_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def texts_of(stream: RowStream, skip: int = 0) -> list[str]:
    return [row["text"] for _, row in stream.read(skip)]


def refused(source: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        list(open_stream(source, **options).read())
    return message_of(error)


def sources() -> list[str]:
    import datasets

    rows: list[dict[str, Any]] = texts("é", 25)
    write_csv("a.csv", rows)
    write("a.jsonl", jsonl(rows).replace("\n", "\n\n"))
    write("a.jsonl.gz", Path("a.jsonl").read_bytes())
    write("a.json", json.dumps(rows))
    write("a.txt", "".join(row["text"] + "\n" for row in rows))
    write_parquet("a.parquet", rows, row_group_size=10)
    write("folder/train.jsonl", jsonl(rows[:20]))
    write("folder/train2.jsonl", jsonl(rows[20:]))
    datasets.Dataset.from_list(rows).save_to_disk("saved")
    write("parts/1.jsonl", jsonl(rows[:10]))
    write("parts/2.txt", "".join(row["text"] + "\n" for row in rows[10:]))
    files = ["a.csv", "a.jsonl", "a.jsonl.gz", "a.json", "a.txt", "a.parquet"]
    return [*files, "folder", "saved", "parts/*", "parts/1.jsonl,parts/2.txt"]


def test_a_stream_gives_the_rows_and_places_of_its_source_from_any_row_on() -> None:
    for source in sources():
        stream, rows = open_stream(source), load_rows(source)
        expected = [(place(rows, at, ""), rows[at]) for at in range(25)]
        assert [row for _, row in expected] == texts("é", 25), source
        for skip in (0, 1, 9, 10, 20, 24, 25, 100, 0):
            assert [*stream.read(skip)] == expected[skip:], (source, skip)


def test_streams_travel_to_other_processes_and_know_their_source() -> None:
    names = sources()
    identities = []
    for source in names:
        stream = open_stream(source)
        copy = pickle.loads(pickle.dumps(stream))
        assert [*copy.read(3)] == [*stream.read(3)], source
        assert copy.identity == stream.identity == open_stream(source).identity
        identities.append(stream.identity)
    assert len({*identities}) == len(names) - 1, "the files of parts/* are the same, listed or not"
    write("a.txt", Path("a.txt").read_bytes() + b"more\n")
    assert open_stream("a.txt").identity not in identities


def test_a_row_that_is_skipped_is_not_parsed() -> None:
    stream = open_stream(write("a.jsonl", '{"text": "a"}\nbroken\n\n{"text": "c"}\n'))
    assert [*stream.read(2)] == [("a.jsonl:4", {"text": "c"})]
    reader = stream.read()
    assert next(reader) == ("a.jsonl:1", {"text": "a"})
    with pytest.raises(UserError) as error:
        next(reader)
    assert message_of(error) == "a.jsonl:2: not valid JSON (Expecting value: line 1 column 1 (char 0))"


def test_a_row_group_that_is_skipped_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    stream = open_stream(write_parquet("a.parquet", texts("a", 50), row_group_size=10))
    read: list[int] = []
    original = parquet.ParquetFile.read_row_group

    def noted(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", noted)
    assert texts_of(stream, 35) == [f"a{number}" for number in range(35, 50)]
    assert read == [3, 4]


def test_memory_stays_flat_whatever_the_stream_holds() -> None:
    for name in ("a.jsonl", "a.txt.gz"):
        line = '{"text": "' + "x" * 10_000 + '"}\n'
        stream = open_stream(write(name, line * 1000))
        next(stream.read())
        tracemalloc.start()
        assert sum(1 for _ in stream.read(10)) == 990
        assert tracemalloc.get_traced_memory()[1] < 2e6, "of 10 MB"
        tracemalloc.stop()


def test_a_weighted_stream_has_its_shares_in_every_stretch_and_resumes_anywhere() -> None:
    write("a.txt", "".join(f"a{number}\n" for number in range(70)))
    write("b.txt", "".join(f"b{number}\n" for number in range(40)))
    stream = open_stream("a.txt:0.7,b.txt:0.3")
    whole = texts_of(stream)

    assert whole[:10] == ["a0", "b0", "a1", "a2", "a3", "b1", "a4", "a5", "b2", "a6"]
    assert [text for text in whole if text[0] == "a"] == [f"a{number}" for number in range(70)], "each part in order"
    for stretch in range(0, 100, 10):
        assert Counter(text[0] for text in whole[stretch : stretch + 10]) == {"a": 7, "b": 3}
    assert 100 <= len(whole) <= 101, "an epoch ends when the first part has no row left"
    for skip in (1, 2, 17, 99, len(whole), 500):
        assert texts_of(stream, skip) == whole[skip:]
    assert texts_of(pickle.loads(pickle.dumps(stream))) == whole
    assert stream.identity != open_stream("a.txt:0.6,b.txt:0.4").identity


def test_whose_turn_it_is_stays_within_two_rows_of_the_shares() -> None:
    shares = (0.5, 0.25, 0.15, 0.07, 0.03)
    given = Counter[int]()
    for rows, turn in enumerate(islice(turns(shares), 5000), 1):
        given[turn] += 1
        assert all(abs(given[part] - share * rows) < 2 for part, share in enumerate(shares))
    assert [*islice(turns((0.5, 0.5)), 5)] == [0, 1, 0, 1, 0]


def test_what_a_stream_refuses() -> None:
    write("empty.txt", "\n\n")
    write("a.csv", "x,y\n1,2\n3\n")
    write("folder/train.jsonl", jsonl(texts("a", 3)))
    Path("nothing").mkdir()
    write("full_too.txt", "a\n")
    assert refused("empty.txt") == refused("*.txt") == "empty.txt: the file holds no rows"
    assert refused("a.csv") == "a.csv:3: 1 cells where the header names 2 columns"
    assert refused("a.csv", split="test").startswith("a.csv: a single file has no split 'test'")
    assert refused("a.txt") == "a.txt: no such file"
    assert refused("aa.csv") == "aa.csv: no such file; did you mean 'a.csv'?"
    assert refused("*.jsonl") == "*.jsonl: no file fits this pattern"
    assert refused("nothing") == "nothing: a folder without a data file in it"
    assert refused("folder", split="dev").startswith("folder: cannot be loaded (Bad split: dev")
    packed = Path(write("a.txt.gz", os.urandom(100_000).hex().replace("0", "\n"))).read_bytes()
    Path("a.txt.gz").write_bytes(packed[:60_000])
    assert refused("a.txt.gz") == "a.txt.gz: the gzip file ends too early: it is truncated, fetch or write it again"


def test_a_file_of_a_folder_that_breaks_on_the_way_is_told_with_its_row() -> None:
    write("folder/train.jsonl", jsonl(texts("a", 3)) + '{"text": \n')
    assert refused("folder").startswith("folder: the rows from number 1 on cannot be read (")


def test_a_file_that_changed_is_refused() -> None:
    stream = open_stream(write("a.txt", "a\nb\n"))
    write("a.txt", "a\nb\nc\n")
    with pytest.raises(UserError, match="a.txt: the file has changed since this run began to read it"):
        list(stream.read())
