"""A user's own classes by dotted path: what loads, and what each mistake says."""

import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from relax.errors import UserError
from relax.plugins import build_callbacks, load_object

NOISE = """
from lightning.pytorch import Callback

class NoiseScale(Callback):
    def __init__(self, every: int = 10, *, beta: float = 0.9) -> None:
        if every < 1:
            raise ValueError("every must be positive")
        self.every, self.beta = every, beta

def schedule(step: int) -> float:
    return 1.0 / step
"""


@pytest.fixture(autouse=True)
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder ``experiments`` (no __init__.py) in the current directory, which is not on sys.path."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "noise.py").write_text(NOISE)
    (folder / "needs.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_loads_from_the_current_directory() -> None:
    assert load_object("experiments.noise.schedule")(4) == 0.25


def test_current_directory_does_not_hide_installed_packages(tmp_path: Path) -> None:
    (tmp_path / "fractions.py").write_text("Fraction = 'mine'\n")
    assert load_object("fractions.Fraction") != "mine"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("NoiseScale", "'NoiseScale' is not a dotted path: write it as package.module.Name"),
        ("experiments/noise.py", "is not a dotted path"),
        (
            "experiments.noize.NoiseScale",
            "there is no module 'experiments.noize' in experiments; did you mean experiments.noise?",
        ),
        ("experiment.noise.NoiseScale", "there is no module 'experiment' in .*; did you mean experiments?"),
        ("experiments.noise.sub.X", "there is no module 'experiments.noise.sub' in experiments.noise$"),
        (
            "experiments.noise.NoiseScal",
            "experiments.noise has no 'NoiseScal'; did you mean NoiseScale.; it has Callback, NoiseScale, schedule",
        ),
        ("experiments.noise", "experiments.noise is a module: add the name of what it defines"),
        ("experiments.needs.X", "experiments.needs imports 'a_package_nobody_has', which is not installed"),
    ],
)
def test_mistyped_paths_are_explained_in_one_line(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        load_object(path)
    assert "\n" not in str(caught.value)


def test_builds_callbacks_of_users_and_of_lightning() -> None:
    first, second, third = build_callbacks(
        [
            "experiments.noise.NoiseScale",
            {"class_path": "experiments.noise.NoiseScale", "init_args": {"every": 3, "beta": 0.5}},
            {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}},
        ]
    )
    assert (first.every, first.beta, second.every, second.beta) == (10, 0.9, 3, 0.5)
    assert isinstance(third, EarlyStopping)
    assert third.monitor == "val_loss"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"class_path": "experiments.noise.NoiseScale", "init_args": {"evry": 3}},
            "experiments.noise.NoiseScale got an unexpected keyword argument 'evry'; its init_args may be: every, beta",
        ),
        ("lightning.pytorch.callbacks.EarlyStopping", "missing a required argument: 'monitor'; its init_args may be"),
        ("experiments.noise.schedule", "is not a class derived from lightning.pytorch.Callback"),
        ("pathlib.Path", "pathlib.Path is not a class derived from lightning.pytorch.Callback"),
        ({"class_path": "experiments.noise.NoiseScale", "every": 3}, "a callback is a dotted path or a mapping"),
        ({"init_args": {"every": 3}}, "a callback is a dotted path or a mapping"),
        ({"class_path": "experiments.noise.NoiseScale", "init_args": [3]}, "a callback is a dotted path or a mapping"),
    ],
)
def test_wrong_callback_specs_are_explained_in_one_line(spec: str | dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_callbacks([spec])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--callbacks: ")


def test_errors_of_the_users_own_constructor_stay_visible() -> None:
    with pytest.raises(ValueError, match="every must be positive") as caught:
        build_callbacks([{"class_path": "experiments.noise.NoiseScale", "init_args": {"every": 0}}])
    assert not isinstance(caught.value, UserError)
