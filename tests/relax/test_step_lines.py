"""A file of steps is cut back to where a run resumes, and another run's is put aside."""

from pathlib import Path

import pytest

from relax.errors import UserError
from relax.step_lines import append, take_over

LINES = [f'{{"step": {step}, "text": "é\u2028"}}' for step in (1, 3, 3, 5)]


def test_lines_of_later_steps_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lines.jsonl"
    append(path, LINES[:2])
    append(path, LINES[2:])
    assert take_over(path, 3, resumed=True, what="lines") == LINES[:3]
    assert path.read_text(encoding="utf-8").split("\n") == [*LINES[:3], ""]


@pytest.mark.parametrize("cut", [b"", b'{"step": 7, "te', '{"step": 3, "text": "é'.encode()[:-1]])
def test_what_a_killed_writer_left_incomplete_goes(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    append(path, LINES)
    with path.open("ab") as file:
        file.write(cut)
    assert take_over(path, 9, resumed=True, what="lines") == LINES
    append(path, LINES[:1])
    assert path.read_text(encoding="utf-8").split("\n") == [*LINES, LINES[0], ""]


def test_the_file_of_another_run_is_renamed(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert take_over(path, 0, resumed=False, what="lines") == []
    append(path, LINES)
    with pytest.warns(UserWarning, match=r"held the lines of another run: renamed to lines\.jsonl\.old"):
        assert take_over(path, 0, resumed=False, what="lines") == []
    assert not path.exists()
    assert (tmp_path / "lines.jsonl.old").read_text(encoding="utf-8").split("\n") == [*LINES, ""]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write lines\.jsonl in .*file"):
        append(tmp_path / "file" / "lines.jsonl", LINES)
