"""Files read as rows are asked for: by position as in order, in flat memory, from other processes; named by content."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from data_files import ROWS, jsonl, message_of, texts, write, write_csv, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from relax.data import load_rows, split_rows
from relax.data.rows import place
from relax.data.sources.fingerprints import SourceRows
from relax.errors import UserError


@pytest.fixture(autouse=True)
def in_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def every_kind() -> list[str]:
    """The same rows in a file of each kind."""
    rows: list[dict[str, Any]] = texts("é", 2500)
    write_csv("a.csv", rows)
    write("a.jsonl", jsonl(rows))
    write("a.json", json.dumps(rows))
    write("a.txt", "".join(row["text"] + "\n" for row in rows))
    write_parquet("a.parquet", rows, row_group_size=1100)
    write("a.jsonl.gz", Path("a.jsonl").read_bytes())
    return ["a.csv", "a.jsonl", "a.json", "a.txt", "a.parquet", "a.jsonl.gz"]


def test_rows_by_position_in_any_order_are_the_rows_in_order() -> None:
    for name in every_kind():
        rows = load_rows(name)
        assert list(rows) == texts("é", 2500), name
        for at in (0, 2499, 1100, 999, 1000, 2200, 1099, 5):
            assert rows[at] == {"text": f"é{at}"}, name
        assert [*split_rows(rows, 0.5, seed=0)[0]] == [rows[at] for at in split_rows(rows, 0.5, seed=0)[0].indices]
        with pytest.raises(IndexError):
            rows[2500]


def test_a_place_is_a_line_of_the_file_or_a_row() -> None:
    write("a.jsonl", '\n{"text": "a"}\n\n\n{"text": "b"}\n')
    write("a.csv", 'text,n\n\n"a\n\nb",1\nc,2\n')
    write("a.txt.gz", "\n\na\n")
    write("a.json", "[{},\n{},\n{}]")
    write_parquet("a.parquet", ROWS)
    for name, places in {
        "a.jsonl": ["a.jsonl:2", "a.jsonl:5"],
        "a.csv": ["a.csv:3", "a.csv:6"],
        "a.txt.gz": ["a.txt.gz:3"],
        "a.json": ["a.json:row 1", "a.json:row 2", "a.json:row 3"],
        "a.parquet": ["a.parquet:row 1", "a.parquet:row 2"],
    }.items():
        rows = load_rows(name)
        assert [place(rows, at, "data") for at in range(len(rows))] == places
    validation = split_rows(load_rows("a.jsonl"), 1, seed=0)[1]
    assert place(validation, 0, "data") in ("a.jsonl:2", "a.jsonl:5")


def test_a_broken_row_is_found_when_it_is_read() -> None:
    rows = load_rows(write("a.jsonl", '{"text": "a"}\n\n{"text": \n{"text": "c"}'))
    assert (rows[0], rows[2]) == ({"text": "a"}, {"text": "c"})
    with pytest.raises(UserError) as error:
        rows[1]
    assert message_of(error) == "a.jsonl:3: not valid JSON (Expecting value: line 1 column 9 (char 8))"


cell = st.text(st.sampled_from('ab",\n\r \té\u2028\ufeff0'), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_csv_cells_of_any_content_come_back(rows: list[tuple[str, str]], line_end: str) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    loaded = load_rows(write("a.csv", text.getvalue()))
    assert (
        list(loaded) == [loaded[at] for at in range(len(loaded))] == [dict(zip("xy", row, strict=True)) for row in rows]
    )


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('a",\n é'), max_size=30))
def test_any_csv_file_is_read_as_pythons_reader_reads_it_or_refused(body: str) -> None:
    write("a.csv", "x,y\n" + body)
    try:
        expected = [cells for cells in csv.reader(io.StringIO(body, newline=""), strict=True) if cells]
    except csv.Error:
        expected = [["not CSV"]]
    try:
        rows = load_rows("a.csv")
        read = [[*row.values()] for row in rows]
    except UserError:
        assert not expected or any(len(cells) != 2 for cells in expected)
    else:
        assert read == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=5), max_size=3), min_size=1
    )
)
def test_jsonl_rows_of_any_content_come_back(rows: list[dict[str, Any]]) -> None:
    try:
        write("a.jsonl", "\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    loaded = load_rows("a.jsonl")
    assert list(loaded) == [loaded[at] for at in range(len(loaded))] == rows


def peak_bytes(work: Any) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_memory_stays_flat_whatever_the_file_holds(name: str) -> None:
    words = "x" * 10_000
    write(name, (f'{{"text": "{words}"}}\n' if "jsonl" in name else f"{words}\n") * 3000)

    def read() -> None:
        rows = load_rows(name)
        assert sum(1 for _ in rows) >= 2999
        assert len(rows.fingerprint) == 32
        assert rows[2000]

    read()  # what Python imports and caches on the way
    assert peak_bytes(read) < 3e6, "of 30 MB"


def num_open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()]) if Path("/proc/self/fd").exists() else 0


def test_one_row_group_is_in_memory_and_of_many_files_none_stays_open() -> None:
    import pyarrow

    for file in range(30):
        write_parquet(f"{file}.parquet", [{"text": "x" * 10_000}] * 100, row_group_size=20, use_dictionary=False)
        write(f"{file}.jsonl", jsonl(texts("a", 2)))
    before, open_before = pyarrow.total_allocated_bytes(), num_open_files()
    rows = load_rows("*.parquet,*.jsonl")
    for row in rows:
        assert row
        assert pyarrow.total_allocated_bytes() - before < 2 * 20 * 10_000
    assert all(rows[at] == row for at, row in enumerate(rows))
    assert num_open_files() == open_before


def test_a_row_of_ten_megabytes() -> None:
    huge = "é" * 5_000_000
    write("a.jsonl", json.dumps({"text": "a"}) + "\n" + json.dumps({"text": huge}, ensure_ascii=False) + "\n")
    write("a.txt", f"a\n{huge}")
    write_csv("a.csv", [{"text": "a"}, {"text": huge}])
    write("b.csv.gz", Path("a.csv").read_bytes())
    write_parquet("a.parquet", [{"text": "a"}, {"text": huge}])
    for name in ("a.jsonl", "a.txt", "a.csv", "b.csv.gz", "a.parquet"):
        assert load_rows(name)[1] == {"text": huge}, name


def read_all(rows: SourceRows) -> list[Any]:
    return [rows[at] for at in range(len(rows))]


def test_rows_travel_to_other_processes() -> None:
    for name in every_kind():
        rows = load_rows(name)
        first = rows[0]
        copy = pickle.loads(pickle.dumps(rows))
        assert (copy[0], copy.place(7), len(copy)) == (first, rows.place(7), 2500), name
        assert copy.fingerprint == rows.fingerprint
        assert name.endswith("json") or len(pickle.dumps(rows)) < 45_000, "an index, not the rows"
        with multiprocessing.get_context("fork").Pool(2) as pool:  # each child reads with what the parent has opened
            assert pool.map(read_all, [rows] * 2) == [texts("é", 2500)] * 2, name


def test_threads_and_forks_do_not_move_one_anothers_place_in_the_file() -> None:
    rows = load_rows(write("a.jsonl", jsonl(texts("a", 2000))))
    wrong: list[int] = []

    def read(start: int) -> None:
        wrong.extend(at for at in range(start, 2000, 2) if rows[at] != {"text": f"a{at}"})

    rows[0]
    child = os.fork()
    if child == 0:
        read(0)
        os._exit(bool(wrong))
    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert not wrong


def test_a_fingerprint_is_of_the_content() -> None:
    names = every_kind()
    prints = {name: load_rows(name).fingerprint for name in names}
    assert prints["a.jsonl.gz"] == prints["a.jsonl"], "packed or not"
    assert len({*prints.values()}) == len(names) - 1, "what reads the file counts"

    Path("elsewhere").mkdir()
    for name in names:
        raw = Path(name).read_bytes()
        Path("elsewhere", name).write_bytes(raw)
        assert load_rows(f"elsewhere/{name}").fingerprint == prints[name], "its place does not count"
    write("a.txt", Path("a.txt").read_bytes().replace("é7\n".encode(), "é8\n".encode(), 1))
    assert load_rows("a.txt").fingerprint != prints["a.txt"]


def test_the_fingerprint_of_a_saved_folder_stays() -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk("one")
    first = load_rows("one")
    assert first.fingerprint == load_rows("one").fingerprint
    assert first.place(1) == "one:row 2"
    datasets.Dataset.from_list(ROWS[::-1]).save_to_disk("two")
    assert load_rows("two").fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_that_changes_under_the_run_is_refused(name: str) -> None:
    def save(rows: list[dict[str, Any]]) -> None:
        write_parquet(name, rows) if name.endswith("parquet") else write(name, jsonl(rows))

    save(texts("a", 3))
    rows = pickle.loads(pickle.dumps(load_rows(name)))
    save(texts("a", 4))
    for read in (lambda: rows[0], lambda: list(rows), lambda: rows.fingerprint):
        with pytest.raises(UserError, match=f"{name}: the file has changed since this run began to read it"):
            read()
    Path(name).unlink()
    with pytest.raises(UserError, match=f"{name}: cannot be read any more \\(No such file or directory\\)"):
        rows[0]


def test_what_gzip_was_unpacked_to_is_gone_with_the_process() -> None:
    write("a.jsonl.gz", jsonl(ROWS))
    code = (
        "import glob, os, relax.data; rows = relax.data.load_rows('a.jsonl.gz')\n"
        "child = os.fork()\n"
        "if child == 0: raise SystemExit\n"  # a child that ends takes nothing along
        "os.waitpid(child, 0)\n"
        "print(len(rows), len(glob.glob('unpacked/*')))"
    )
    Path("unpacked").mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(Path("unpacked").resolve()),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["2", "1"]
    assert not list(Path("unpacked").iterdir())


def test_no_room_to_unpack_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device that is full")
    monkeypatch.setattr(
        "tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(Path("copy").resolve()))
    )
    Path("copy").touch()
    Path("a.txt.gz").write_bytes(gzip.compress(b"x\n" * 100_000))
    with pytest.raises(UserError) as error:
        load_rows("a.txt.gz")
    assert "a.txt.gz: no room to unpack it in " in message_of(error)
    assert message_of(error).endswith("(No space left on device); free some or set TMPDIR")
    assert not Path("copy").exists()
