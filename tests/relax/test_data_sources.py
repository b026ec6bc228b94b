"""Rows from files, folders and the hub; what is refused, and that a path never reaches the network."""
# ruff: noqa: E501  (tables of literal messages)

import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from data_files import ROWS, jsonl, message_of, texts, write, write_csv, write_parquet

from relax.data import load_rows, split_rows
from relax.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every look at the network fails the test; `datasets` keeps its files in the test's folder."""
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def refused(source: str, **options: Any) -> str:
    """The message, of loading it or of reading its rows."""
    with pytest.raises(UserError) as error:
        list(load_rows(source, **options))
    return message_of(error)


def test_every_kind_of_file_gives_the_same_rows() -> None:
    write("a.jsonl", jsonl(ROWS))
    write("b.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS).replace("\n", "\r\n \r\n").encode())
    write("a.json", json.dumps(ROWS, indent=2))
    write("b.json", "\ufeff" + json.dumps({"data": ROWS}))
    write_parquet("a.parquet", ROWS)
    write_csv("a.csv", ROWS)
    for name in ("b.jsonl", "b.json", "a.csv"):
        write(f"{name}.gz", Path(name).read_bytes())
    write("MANY.JSONL.GZ", "x")
    Path("MANY.JSONL.GZ").write_bytes(gzip.compress(jsonl(ROWS).encode()))

    names = [*map(str, Path().glob("*.*")), str(Path("a.csv").resolve())]
    assert len(names) == 11
    for name in names:
        rows = load_rows(name)
        assert len(rows) == 2, name
        assert list(rows) == [rows[0], rows[1]] == ROWS, name


def test_a_line_of_text_is_a_row() -> None:
    write("a.txt", b'\xef\xbb\xbf one \r\n\r\n \t\n\ntwo, "2"\n\n\xc3\xa9\xe2\x80\xa8')
    write("b.txt.gz", Path("a.txt").read_bytes())
    for name in ("a.txt", "b.txt.gz"):
        rows = load_rows(name)
        assert list(rows) == [{"text": " one "}, {"text": 'two, "2"'}, {"text": "é\u2028"}]
        assert [rows[at] for at in range(3)] == list(rows)


def test_csv_cells_stay_strings() -> None:
    assert list(load_rows(write("a.csv", "prompt,completion\n1,007\n\n2,\n"))) == [
        {"prompt": "1", "completion": "007"},
        {"prompt": "2", "completion": ""},
    ]
    long = "x" * 300_000
    assert load_rows(write("long.csv", f'text\n"{long}"\n'))[0] == {"text": long}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl:2: not valid JSON (Expecting value: line 1 column 9 (char 8))"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', "a.jsonl:3: a line must be one JSON object; if the file is one JSON list, name it .json"),
        ("a.jsonl", '{"text": "a"}\n\n"b"\n', "a.jsonl:3: a row must be a JSON object, got str"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "a.jsonl:2: not valid UTF-8 (byte 0xe9 at position 10): save the file as UTF-8"),
        ("a.jsonl", "[\n{}\n]", "a.jsonl:1: a line must be one JSON object; if the file is one JSON list, name it .json"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: a line must be one JSON object; if the file is one JSON list, name it .json"),
        ("a.jsonl", '{"a":' * 100_000, "a.jsonl:1: not valid JSON (maximum recursion depth exceeded"),
        ("a.jsonl", "", "a.jsonl: the file is empty (0 bytes)"),
        ("a.jsonl", "\n\n", "a.jsonl: the file holds no rows"),
        ("a.json", "[]", "a.json: the file holds no rows"),
        ("a.json", " ", "a.json: the file holds no rows"),
        ("a.json", '[{"text": 1}, 2]', "a.json:row 2: a row must be a JSON object, got int"),
        ("a.json", '{"rows": []}', 'a.json: a .json file must be a list of objects, or {"data": [...]}, got another shape'),
        ("a.json", '[{"text": 1},', "a.json: not valid JSON (Expecting value"),
        ("a.json", '{"text": 1}\n{"text": 2}\n', "a.json: not valid JSON, it holds one object a line: rename it to .jsonl"),
        ("a.json", b"\xff\xfe[\x00]\x00", "a.json: not valid UTF-8 (byte 0xff at position 0): save the file as UTF-8"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: 1 cells where the header names 2 columns"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: the first line must name each column once, got ['a', 'a']"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv:2: not valid CSV (unexpected end of data)"),
        ("a.csv", 'a,b\n1,"2"3\n', "a.csv:2: not valid CSV (',' expected after '\"')"),
        ("a.csv", 'a,b\n1,2\r3,4\r', "a.csv:2: not valid CSV (new-line character seen in unquoted field)"),
        ("a.csv", b'a,b\n1,"\n\xe9"\n', "a.csv:3: not valid UTF-8 (byte 0xe9 at position 0): save the file as UTF-8"),
        ("a.csv", b"\n\n\na,\n", "a.csv:4: the first line must name each column once, got ['a', '']"),
        ("a.txt", b"\n\n\xe9\n", "a.txt:3: not valid UTF-8 (byte 0xe9 at position 0): save the file as UTF-8"),
        ("a.txt", " \n", "a.txt: the file holds no rows"),
        ("a.jsonl.gz", "{}\n[]", "a.jsonl.gz:2: a line must be one JSON object"),
        ("a.txt.gz", "", "a.txt.gz: the file holds no rows"),
        ("a.csv", "a,b\n", "a.csv: the file holds no rows"),
        ("a.csv", b"\xef\xbb\xbf", "a.csv: the file holds no rows"),
        ("a.parquet", "PAR1 not at all", "a.parquet: not a readable Parquet file ("),
        ("a.xml", "<a/>", "a.xml: a data file ends in .jsonl, .json, .parquet, .csv, .txt (all but .parquet may have .gz behind it), got '.xml'"),
        ("data", "x", "data: a data file ends in .jsonl, .json, .parquet, .csv, .txt (all but .parquet may have .gz behind it), got 'no suffix'"),
        ("a.parquet.gz", "x", "a.parquet.gz: a data file ends in .jsonl,"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_line(name: str, content: str | bytes, message: str) -> None:
    assert refused(write(name, content)).startswith(message)


def test_a_damaged_parquet_file_is_named() -> None:
    write_parquet("a.parquet", texts("a", 5000), row_group_size=1000, compression="none", use_dictionary=False)
    whole = Path("a.parquet").read_bytes()
    write("a.parquet", whole[:-20])
    assert refused("a.parquet").startswith("a.parquet: not a readable Parquet file (")

    middle = len(whole) // 2
    write("a.parquet", whole[:middle] + bytes(9000) + whole[middle + 9000 :])
    rows = load_rows("a.parquet")
    assert rows[0] == {"text": "a0"}, "the damage is further in"
    with pytest.raises(UserError, match=r"a.parquet: not a readable Parquet file \("):
        list(rows)


def test_a_cell_that_python_cannot_hold_is_named_with_its_row() -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    def file_of(cells: pyarrow.Array) -> str:
        parquet.write_table(pyarrow.table({"text": cells}), "a.parquet", row_group_size=1500)
        return "a.parquet"

    raw = pyarrow.array([b"ok"] * 1700 + [b"\xff"] + [b"ok"])
    name = file_of(pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers()))
    assert refused(name).startswith(
        "a.parquet:row 1701: a cell cannot be decoded ('utf-8' codec can't decode byte 0xff"
    )
    assert load_rows(name)[1499] == {"text": "ok"}
    datasets.Dataset(parquet.read_table(name)).save_to_disk("saved")
    assert refused("saved").startswith("saved: the rows from number 1701 on cannot be read ('utf-8' codec")
    with pytest.raises(UserError, match="saved: row 1701 cannot be read"):
        load_rows("saved")[1700]
    with pytest.raises(IndexError):
        load_rows("saved")[1702]

    far = file_of(pyarrow.array([0, 2**62], pyarrow.timestamp("us")))
    assert refused(far) == "a.parquet:row 2: a cell cannot be decoded (date value out of range)"
    double = pyarrow.Table.from_arrays([raw, raw], ["text", "text"])
    parquet.write_table(double, "double.parquet")
    assert refused("double.parquet") == "double.parquet: the file must name each column once, got ['text', 'text']"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_damaged_gzip_file_is_named(suffix: str) -> None:
    name = write(f"a{suffix}.gz", "text\n" * 100_000)
    packed = Path(name).read_bytes()
    Path(name).write_bytes(packed[: len(packed) // 2])
    assert refused(name) == f"{name}: the gzip file ends too early: it is truncated, fetch or write it again"
    Path(name).write_bytes(packed[:-8] + bytes(8))
    assert refused(name).startswith(f"{name}: not a readable gzip file (CRC check failed")
    Path(name).write_bytes(packed[:12] + b"\xff" * 40 + packed[52:])
    assert refused(name).startswith(f"{name}: not a readable gzip file (Error -3 while decompressing")
    Path(name).write_bytes(b"text\n")
    assert refused(name) == f"{name}: not a readable gzip file (Not a gzipped file (b'te'))"
    Path(name).write_bytes(b"")
    assert refused(name) == f"{name}: the file is empty (0 bytes)"
    assert not list(Path(tempfile.gettempdir()).glob("relax-*")), "nothing is left of what was unpacked"


def test_what_may_not_be_read_is_named() -> None:
    for name in ("a.jsonl", "a.parquet", "a.csv.gz", "shut/a.jsonl"):
        write(name, "text")
        Path(name).chmod(0)
    Path("shut").chmod(0)
    with nobody():
        for name in ("a.jsonl", "a.parquet", "a.csv.gz", "shut/a.jsonl", "shut/*.jsonl", "shut/b.jsonl"):
            assert refused(name) == f"{name}: cannot be read (Permission denied)"
    Path("shut").chmod(0o700)


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything: be somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        Path.cwd().chmod(0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_pipe_is_refused_and_not_waited_for() -> None:
    os.mkfifo("a.jsonl")
    assert refused("a.jsonl") == "a.jsonl: a pipe or a device, which cannot be read twice: write it to a file"


def test_a_name_no_file_system_knows_is_refused() -> None:
    assert refused("x" * 5000 + ".jsonl").endswith("x: cannot be read (File name too long)")
    assert "no such file" in refused("a\0.jsonl")


def test_a_missing_file_names_the_nearest_and_never_reaches_the_hub() -> None:
    write("train.jsonl", jsonl(ROWS))
    assert refused("trian.jsonl") == "trian.jsonl: no such file; did you mean 'train.jsonl'?"
    assert refused("folder/train.jsonl") == "folder/train.jsonl: no such file (there is no folder 'folder')"
    for path in (
        "./squad",
        "../squad",
        "/squad",
        "~/squad",
        "~nobody_of_this_name/squad",
        "a/b/squad",
        "squad.txt",
        "squad.csv.gz",
        "org/squad.json.gz",
        "c:\\squad",
    ):
        assert "no such file" in refused(path)
    assert refused("") == "a data source must be a file, a folder or a hub name, got an empty string"


def test_a_single_file_has_no_splits() -> None:
    write("a.jsonl", jsonl(ROWS))
    assert refused("a.jsonl", split="test") == (
        "a.jsonl: a single file has no split 'test'; give that part as a file of its own"
    )
    assert "no configuration 'main'" in refused("a.jsonl", name="main")


def test_a_hub_name_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write("squads.jsonl", jsonl(ROWS))
    assert refused("someone/squad").startswith(
        "someone/squad: neither a file here nor reachable on the hub (Couldn't reach"
    )
    assert refused("squads").endswith("; did you mean 'squads.jsonl'?")


def test_folders_saved_by_datasets() -> None:
    import datasets

    one, two = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    one.save_to_disk("one")
    datasets.DatasetDict({"train": one, "test": two}).save_to_disk("both")

    assert list(load_rows("one")) == ROWS
    assert list(load_rows("both")) == ROWS
    assert list(load_rows("both", "test")) == ROWS[:1]
    assert refused("both", split="dev") == "both: no split 'dev' in this folder, it has test, train"
    assert refused("one", split="test") == "one: no split 'test' in this folder, it has train"
    assert "no configuration 'main'; leave it out" in refused("one", name="main")
    Path("one/dataset_info.json").write_text("{")
    assert refused("one").startswith("one: cannot be loaded (")


def test_folders_of_data_files_are_loaded_by_name() -> None:
    import datasets

    Path("org/data").mkdir(parents=True)
    datasets.Dataset.from_list(ROWS).to_parquet("org/data/train.parquet")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet("org/data/test.parquet")
    assert list(load_rows("org/data")) == ROWS
    assert list(load_rows("org/data", "test")) == ROWS[:1]
    assert list(load_rows("org/data", "train[1:]")) == ROWS[1:]
    assert 'Unknown split "dev"' in refused("org/data", split="dev")

    Path("lines").mkdir()
    write("lines/train.jsonl", jsonl(ROWS))
    assert list(load_rows("lines")) == ROWS
    write("lines/more.jsonl", jsonl(ROWS))
    write("lines/other.txt", "x")
    with pytest.warns(
        UserWarning, match=r"lines: .* left out, here more\.jsonl and 1 more; .* such as lines/\*\.jsonl"
    ):
        assert list(load_rows("lines")) == ROWS
    write("script/script.py", "")
    assert refused("script").startswith("script: cannot be loaded (Dataset scripts are no longer supported")
    write("empty/a.jsonl", "")
    assert refused("empty").startswith("empty: cannot be loaded (")
    Path("nothing").mkdir()
    assert refused("nothing") == "nothing: a folder without a data file in it"
    Path("named.jsonl").mkdir()
    assert refused("named.jsonl") == "named.jsonl: a folder without a data file in it"
    write("named.jsonl/train.jsonl", '{"text": ')
    assert refused("named.jsonl").startswith("named.jsonl: cannot be loaded (")


def test_a_split_is_a_function_of_the_seed_and_keeps_the_order() -> None:
    rows = [{"text": str(number)} for number in range(100)]
    train, validation = split_rows(rows, 0.1, seed=3)
    again, _ = split_rows(rows, 0.1, seed=3)
    other, _ = split_rows(rows, 0.1, seed=4)

    assert (len(train), len(validation)) == (90, 10)
    assert sorted([*train.indices, *validation.indices]) == list(range(100))
    assert list(train.indices) == sorted(train.indices)
    assert list(train.indices) == list(again.indices) != list(other.indices)
    assert train[3] == rows[train.indices[3]]
    assert list(validation) == [rows[at] for at in validation.indices]
    assert len(split_rows(rows, 7, seed=3)[1]) == 7
    assert len(split_rows(rows[:3], 0.01, seed=3)[1]) == 1, "never an empty part"


@pytest.mark.parametrize("validation", [0, 1.0, 100, 1.5, -1, 0.0])
def test_a_split_that_leaves_a_part_empty_is_refused(validation: float) -> None:
    with pytest.raises(UserError, match="--val_split must be a share between 0 and 1 or a number of rows from 1 to 99"):
        split_rows([{"text": "x"}] * 100, validation, seed=0)


def test_importing_the_data_room_loads_no_data_library() -> None:
    loaded = "import sys, relax.data; print([m for m in ('datasets', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout.strip() == "[]"


def test_tables_in_a_folder_are_refused_because_their_cells_would_be_guessed() -> None:
    Path("tables").mkdir()
    write("tables/a.csv", "prompt,completion\n1,007\n")
    expected = "tables: cells of .csv files in a folder would be guessed to be numbers (007 becomes 7); give the files"
    with pytest.raises(UserError) as error:
        load_rows("tables")
    assert message_of(error).startswith(expected)
    assert list(load_rows("tables/*.csv")) == [{"prompt": "1", "completion": "007"}]


def test_a_mistyped_file_never_becomes_a_request_to_the_hub() -> None:
    write("chat.jsonl", jsonl(["a"]))
    with pytest.raises(UserError) as error:
        load_rows("chat.jsn")
    assert message_of(error) == "chat.jsn: no such file; did you mean 'chat.jsonl'?"
