"""Bundles of flags that scripts share: a dataclass in the signature of ``main``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from relax.cli import run
from relax.cli.inline import read_inline
from relax.errors import UserError
from relax.launch.flags import by_name, names


@dataclass(frozen=True, kw_only=True)
class Network:
    """Of what size.

    Args:
        width: of a layer.
        kind: of its nonlinearity.
    """

    width: int
    kind: Literal["relu", "gelu"] = "relu"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where to.

    Args:
        folder: to write to.
    """

    folder: str | None = None


def call(*argv: str) -> dict[str, Any]:
    """What ``main`` receives."""
    received: dict[str, Any] = {}

    def main(*, network: Network, place: Place, depth: int = 2) -> None:
        """Build it.

        Args:
            depth: in layers.
        """
        received.update(network=network, place=place, depth=depth)

    run(main, argv)
    return received


def test_fields_are_flags_and_arrive_in_an_instance(tmp_path: Path) -> None:
    assert call("--width=3", "--folder=x") == {"network": Network(width=3), "place": Place(folder="x"), "depth": 2}
    config = tmp_path / "c.yaml"
    config.write_text("width: 4\nkind: gelu\ndepth: 5\n")
    expected = {"network": Network(width=8, kind="gelu"), "place": Place(), "depth": 5}
    assert call(f"--config={config}", "--width=8") == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "this script needs --width=..."),
        (["--width=wide"], "--width must be int, got 'wide'"),
        (["--width=3", "--kind=tanh"], "--kind must be one of {relu, gelu}, got 'tanh'"),
        (["--width=3", "--foldr=x"], "unknown flag --foldr (from the command line); did you mean --folder?"),
        (["--network=3"], "unknown flag --network"),
    ],
)
def test_they_are_checked_as_other_flags(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(*argv)
    assert message in capsys.readouterr().err


def test_the_help_describes_them(capsys: pytest.CaptureFixture[str]) -> None:
    call("--help")
    text = capsys.readouterr().out
    assert "--width  int  (required)\n      of a layer." in text
    assert "--kind  {relu, gelu}  (default: relu)\n      of its nonlinearity." in text
    assert "--folder  str | None  (default: None)\n      to write to." in text


def test_bundles_unpack_to_what_a_configuration_file_holds() -> None:
    assert names(Network) == ("width", "kind")
    assert by_name({"network": Network(width=1), "depth": 2}) == {"width": 1, "kind": "relu", "depth": 2}


def test_a_name_with_settings() -> None:
    assert read_inline("kl_schedule", "constant") == ("constant", {})
    assert read_inline("kl_schedule", "linear, end=0,steps = 1e3") == ("linear", {"end": "0", "steps": "1e3"})


@pytest.mark.parametrize("text", ["", "end=0", "linear,", "linear,end", "linear,end=", "linear,=0", "linear,a=1,a=2"])
def test_a_name_with_broken_settings_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--kl_schedule"):
        read_inline("kl_schedule", text)
