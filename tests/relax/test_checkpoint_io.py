"""A checkpoint file is the old one or the complete new one, and only plain values come out of it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relax.checkpoint_io import AtomicCheckpointIO, latest_checkpoint, step_checkpoint
from relax.errors import UserError

PLAIN = {"weights": torch.arange(5000.0), "loops": {"step": 3, "name": "x", "none": None, "pairs": [(1, 2.5)]}}


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def saved(path: Path, content: Any = PLAIN) -> Path:
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_what_is_saved_is_loaded_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = saved(tmp_path / "new" / "a.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["weights"], PLAIN["weights"])
    assert loaded["loops"] == PLAIN["loops"]
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name_with_the_one_to_take(tmp_path: Path, keep: float) -> None:
    other = saved(step_checkpoint(tmp_path, 1))
    path = saved(step_checkpoint(tmp_path, 2))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(UserError, match=rf"{path} is damaged .*resume from {other}"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt")
    content = bytearray(path.read_bytes())
    at = content.find(PLAIN["weights"][1000:1010].numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="wrong checksum"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_objects_that_only_code_could_load_are_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"state": np.random.default_rng(0).random(3)})
    with pytest.raises(UserError, match=r"cannot be loaded safely \(.*numpy.*_reconstruct"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=False)["state"].shape == (3,)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*gone\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")


def test_a_full_disk_keeps_the_old_file_and_leaves_no_half_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt")
    before = path.read_bytes()
    process = run_python(
        """
        import resource, signal, sys, torch
        from relax.checkpoint_io import AtomicCheckpointIO
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an OSError, as on a full disk
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in (0, 5_000, 20_500):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(5000)}, sys.argv[1])
            except ValueError as error:
                print(type(error).__name__, error)
        """,
        path,
    )
    output, _ = process.communicate(timeout=60)
    lines = output.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"UserError cannot write a.ckpt in {tmp_path}: no room left") for line in lines)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write a\.ckpt in .*file"):
        AtomicCheckpointIO().save_checkpoint(PLAIN, tmp_path / "file" / "a.ckpt")


def test_kill_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = saved(step_checkpoint(tmp_path, 1), {"weights": torch.zeros(300_000)})
    process = run_python(
        """
        import sys, torch
        from relax.checkpoint_io import AtomicCheckpointIO
        print("ready", flush=True)
        while True:
            AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(300_000)}, sys.argv[1])
        """,
        path,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert AtomicCheckpointIO().load_checkpoint(path)["weights"].unique().numel() == 1
    assert latest_checkpoint(tmp_path) == path


def test_the_latest_is_by_step_intact_and_finished(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    older, newer, newest = (saved(step_checkpoint(tmp_path, step)) for step in (9, 100, 123_456_789))
    saved(tmp_path / "best.ckpt")
    (tmp_path / f"step=00000200.ckpt.tmp-{os.getpid()}").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == newest
    newest.unlink()
    newer.write_bytes(newer.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=newer.name):
        assert latest_checkpoint(tmp_path) == older


def test_a_sharded_checkpoint_is_a_folder(tmp_path: Path) -> None:
    saved(step_checkpoint(tmp_path, 1))
    sharded = step_checkpoint(tmp_path, 2)
    sharded.mkdir()
    (sharded / "meta.pt").touch()
    assert latest_checkpoint(tmp_path) == sharded
