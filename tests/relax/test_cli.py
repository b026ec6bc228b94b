"""The strict command line: what is accepted, what each mistake says, and that none of it loads torch or lightning."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relax.cli import Forwarded, dump_config, run
from relax.errors import UserError

TRAINER = '''
import no_such_package  # reading the source must not run it
from typing import TYPE_CHECKING, Any, Literal, Optional, Union
import torch.nn as nn
if TYPE_CHECKING:
    from collections.abc import Callable

Schedule = Literal["constant", "cosine"]

class Base:
    """The base.

    Args:
        model: The network.
        learning_rate: Peak learning rate, reached after
            the warm-up; see :class:`~torch.optim.AdamW` and ``betas``.
    """

    def __init__(self, model: nn.Module, *, learning_rate: float = 5e-5, schedule: "Schedule" = "constant",
                 betas: tuple[float, float] = (0.9, 0.95), optimizer: Union["Callable[..., Any]", str] = "adamw",
                 scale: int | None = None, collate: "Callable[..., Any] | None" = None, **rest: Any) -> None:
        raise RuntimeError

class Child(Base):
    """The child."""

    def __init__(self, model: nn.Module, scale: float = 1.0, *args: Any, **rest: Any) -> None:
        """Build it.

        Args:
            scale: Of the child. Not of the base. A third sentence.
        """
'''

LIGHTNING = Forwarded("Lightning", module="lightning.pytorch.trainer.trainer", cls="Trainer", brief=True)


@pytest.fixture
def trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Forwarded]:
    """Two classes in a package that cannot be imported."""
    package = f"fake_{tmp_path.name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('imported')\n")
    (tmp_path / package / "trainer.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"{package}.trainer"
    return [Forwarded("Child", module, "Child", ("model",), brief=True), Forwarded("Base", module, "Base", ("model",))]


def values(argv: str | Sequence[str], annotation: Any, forwards: Iterable[Forwarded] = ()) -> dict[str, Any]:
    """What a script with one flag ``--x`` of the given annotation receives."""
    got: dict[str, Any] = {}

    def main(*, x: Any = "default", **rest: Any) -> None:
        got.update({"x": x} | rest)

    main.__annotations__["x"] = annotation
    run(main, argv.split() if isinstance(argv, str) else argv, forwards=list(forwards))
    return got


def refused(capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> str:
    """The one line that a user's mistake prints; it ends with code 2 and prints nothing else."""
    with pytest.raises(SystemExit) as stopped:
        call()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


# --- values of the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("-1", int, -1),
        ("1e-5", float, 1e-5),
        ("1", float, 1.0),
        (".inf", float, float("inf")),
        ("1e5", str, "1e5"),
        ("", str, ""),
        ("a,b", str, "a,b"),
        ("None", str, "None"),
        ("None", str | None, None),
        ("null", int | None, None),
        ("none", str | None, "none"),
        ("True", bool, True),
        ("false", bool, False),
        ("true", str | bool, True),
        ("bf16", Literal["fp32", "bf16"], "bf16"),
        ("16", Literal[16, "auto"] | None, 16),
        ("a/b", Path, Path("a/b")),
        ("10", int | float, 10),
        ("1.0", int | float, 1.0),
        ("8", list[int] | str | int, 8),
        ("auto", list[int] | str | int, "auto"),
        ("0,1", list[int] | str | int, [0, 1]),
        ("0,", list[int] | str | int, [0]),
        ("3", list[int] | None, [3]),
        ("q_proj,v_proj", list[str], ["q_proj", "v_proj"]),
        ("[q_proj,v_proj]", list[str], ["q_proj", "v_proj"]),
        ('["a", "b"]', list[str], ["a", "b"]),
        ("[1e5, no, null]", Sequence[str], ["1e5", "no", "null"]),
        ("q_proj", list[str] | str, "q_proj"),
        ("q_proj", str | list[str] | None, "q_proj"),
        ("q_proj,v_proj", str | list[str] | None, ["q_proj", "v_proj"]),
        ("[q_proj]", str | list[str] | None, ["q_proj"]),
        (r"[qv]_proj$", str | list[str] | None, r"[qv]_proj$"),
        ("0.9,0.95", tuple[float, float], (0.9, 0.95)),
        ("(0.9, 0.95)", tuple[float, float], (0.9, 0.95)),
        ("1,2,3", tuple[int, ...], (1, 2, 3)),
        ("{a: 1e-3, b: 2}", dict[str, float], {"a": 1e-3, "b": 2.0}),
        ("{hours: 1}", str | dict[str, int] | None, {"hours": 1}),
        ("00:01:00:00", str | dict[str, int] | None, "00:01:00:00"),
        ("a.B,c.D", list[str | dict[str, Any]] | None, ["a.B", "c.D"]),
        (
            "{class_path: a.B, init_args: {n: 1}}",
            list[str | dict[str, Any]],
            [{"class_path": "a.B", "init_args": {"n": 1}}],
        ),
        ("1e-5", Any, 1e-5),
        ("no", Any, "no"),
        ("[1, true, null, '1']", Any, [1, True, None, "1"]),
        ("1", Callable[[int], int], 1),
        ("1", Callable[[int], int] | str, "1"),
        ("1", "int | None", 1),
    ],
)
def test_text_becomes_a_value_of_the_annotation(text: str, annotation: Any, value: Any) -> None:
    got = values([f"--x={text}"], annotation)["x"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ("abc", float, "--x must be float, got 'abc' (from the command line)"),
        ("1.5", int, "--x must be int, got '1.5' (from the command line)"),
        ("maybe", bool, "--x must be true or false, got 'maybe' (from the command line)"),
        ("16", Literal["fp32", "bf16"], "--x must be one of {fp32, bf16}, got '16' (from the command line)"),
        ("x", Literal["a"] | int | None, "--x must be {a} | int | None, got 'x' (from the command line)"),
        ("1,x", list[int], "--x must be list[int], got '1,x' (from the command line)"),
        ("0.9", tuple[float, float], "--x must be tuple[float, float], got '0.9' (from the command line)"),
        ("[1", list[int], "--x must be list[int], got '[1' (from the command line)"),
        ("{a: b}", dict[str, int], "--x must be dict[str, int], got '{a: b}' (from the command line)"),
        ("a", dict[str, int], "--x must be dict[str, int], got 'a' (from the command line)"),
    ],
)
def test_value_of_another_type_is_refused(
    text: str, annotation: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, lambda: values([f"--x={text}"], annotation)) == message


# --- flags --------------------------------------------------------------------------------------------------------


def script(*, model: str = "sorting", use_rslora: bool = False, lora_r: int = 0, steps: int = 1, **rest: Any) -> None:
    """Fine-tune a model.

    It prints what it got.

    Examples:
        python run_fake.py --lora_r=8

    Args:
        model: Hub name or folder.
    """
    print({"model": model, "use_rslora": use_rslora, "lora_r": lora_r, "steps": steps} | rest)


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ("", {}),
        ("--use_rslora", {"use_rslora": True}),
        ("--use-rslora --lora_r=3", {"use_rslora": True, "lora_r": 3}),
        ("--nouse_rslora", {}),
        ("--use_rslora=false", {}),
        ("--model x --lora-r 4", {"model": "x", "lora_r": 4}),
        ("--steps -1", {"steps": -1}),
        ("--learning-rate=1e-5 --scale 2", {"learning_rate": 1e-5, "scale": 2.0}),
    ],
)
def test_spellings_of_a_flag(
    argv: str, changed: dict[str, Any], trainers: list[Forwarded], capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, argv.split(), forwards=trainers)
    defaults = {"model": "sorting", "use_rslora": False, "lora_r": 0, "steps": 1}
    assert capsys.readouterr().out.strip() == str(defaults | changed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--learing_rate=1", "unknown flag --learing_rate (from the command line); did you mean --learning_rate?"),
        # What another system calls it, where we have it: "--lr" alone is more like "--lora_r".
        ("--lr=1", "unknown flag --lr (from the command line); did you mean --learning_rate?"),
        ("--lora-rank=1", "unknown flag --lora_rank (from the command line); did you mean --lora_r?"),
        ("--beta=1", "unknown flag --beta (from the command line); did you mean --betas?"),
        ("--zzz=1", "unknown flag --zzz (from the command line); --help lists them all"),
        ("--no_use_rslora", "unknown flag --no_use_rslora (from the command line); did you mean --nouse_rslora?"),
        ("--nolora_r", "unknown flag --nolora_r (from the command line); did you mean --lora_r?"),
        ("--rest=1", "unknown flag --rest (from the command line); --help lists them all"),
        ("-l 3", "unknown flag -l (from the command line); flags are written --name=value"),
        ("foo", "unexpected 'foo' on the command line; settings are given as --name=value"),
        ("--model x foo", "unexpected 'foo' on the command line; settings are given as --name=value"),
        ("--model x - foo", "stray - on the command line; settings are given as --name=value"),
        ("--model=x -- --trace", "stray -- on the command line; settings are given as --name=value"),
        ("--model", "--model needs a value: --model=..."),
        ("--model --lora_r=1", "--model needs a value: --model=..."),
        ("--lora_r=1 --lora-r=2", "--lora_r is given twice on the command line; give it once"),
        ("--use_rslora --nouse_rslora", "--use_rslora is given twice on the command line; give it once"),
        ("--schedule=linear", "--schedule must be one of {constant, cosine}, got 'linear' (from the command line)"),
    ],
)
def test_mistakes_on_the_command_line(
    argv: str, message: str, trainers: list[Forwarded], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, lambda: run(script, argv.split(), forwards=trainers)) == message


def test_parameters_given_by_the_script_are_no_flags(
    trainers: list[Forwarded], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(**rest: Any) -> None: ...

    message = refused(capsys, lambda: run(main, ["--model=x"], forwards=trainers))
    assert message.startswith("unknown flag --model (from the command line)")


def test_missing_required_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def main(*, model: str, dataset: str, lora_r: int = 0) -> None: ...

    message = refused(capsys, lambda: run(main, ["--lora_r=2"]))
    assert message == "this script needs --model=... --dataset=...; --help describes its flags"


def test_first_definition_of_a_flag_wins(trainers: list[Forwarded]) -> None:
    assert values("--scale=1.5", int, trainers)["scale"] == 1.5  # Child says float, Base says int | None
    assert values("--x=1", int, trainers) == {"x": 1}


def test_members_that_only_python_can_pass_are_dropped(trainers: list[Forwarded]) -> None:
    got = values("--optimizer=1 --collate=1", int, trainers)
    assert got == {"x": "default", "optimizer": "1", "collate": 1}  # Callable | str -> str; Callable | None -> as YAML


@pytest.mark.parametrize(
    ("argv", "got"),
    [
        ("--devices=8", {"devices": 8}),
        ("--devices=auto --strategy=ddp", {"devices": "auto", "strategy": "ddp"}),
        ("--devices=0,1 --max_steps=-1", {"devices": [0, 1], "max_steps": -1}),
        ("--precision=bf16-mixed --max_epochs=None", {"precision": "bf16-mixed", "max_epochs": None}),
        ("--fast_dev_run --gradient_clip_val=1e-1", {"fast_dev_run": True, "gradient_clip_val": 0.1}),
        ("--limit_train_batches=1.0 --limit_val_batches=1", {"limit_train_batches": 1.0, "limit_val_batches": 1}),
        ("--deterministic=warn --noenable_progress_bar", {"deterministic": "warn", "enable_progress_bar": False}),
    ],
)
def test_flags_of_lightning(argv: str, got: dict[str, Any]) -> None:
    assert values(argv, int, [LIGHTNING]) == {"x": "default"} | got


def test_wrong_value_of_a_lightning_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert "bf16-mixed" in refused(capsys, lambda: values("--precision=bf17", int, [LIGHTNING]))
    assert "--max_epochs must be int | None" in refused(capsys, lambda: values("--max_epochs=x", int, [LIGHTNING]))


def test_lightning_flags_are_those_of_the_installed_version() -> None:
    import inspect

    from lightning.pytorch import Trainer

    from relax.cli.flags import class_flags

    assert {flag.name for flag in class_flags(LIGHTNING)} == set(inspect.signature(Trainer.__init__).parameters) - {
        "self"
    }


# --- files --------------------------------------------------------------------------------------------------------


def in_file(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "conf.yaml"
    path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
    return f"--config={path}"


def test_file_gives_values_and_the_command_line_wins(
    tmp_path: Path, trainers: list[Forwarded], capsys: pytest.CaptureFixture[str]
) -> None:
    config = in_file(
        tmp_path,
        """\
        model: 1e5        # text for a string flag
        learning_rate: 1e-5
        lora_r: 4
        use_rslora: true
        betas: [0.5, 0.6]
        collate:
        """,
    )
    run(script, [config, "--lora-r=8"], forwards=trainers)
    got = {"model": "1e5", "use_rslora": True, "lora_r": 8, "steps": 1}
    rest = {"learning_rate": 1e-5, "betas": (0.5, 0.6), "collate": None}
    assert capsys.readouterr().out.strip() == str(got | rest)


def test_callbacks_in_a_file_keep_their_arguments(tmp_path: Path) -> None:
    config = in_file(
        tmp_path,
        """\
        x:
          - experiments.noise.NoiseScale
          - class_path: experiments.noise.NoiseScale
            init_args: {beta: 1e-5, name: 'no', on: true, to: no, n: "3"}
        """,
    )
    arguments = {"beta": 1e-5, "name": "no", "on": True, "to": "no", "n": "3"}
    expected = ["experiments.noise.NoiseScale", {"class_path": "experiments.noise.NoiseScale", "init_args": arguments}]
    assert values([config], list[str | dict[str, Any]] | None)["x"] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learing_rate: 1\n", "unknown flag --learing_rate (from {}); did you mean --learning_rate?"),
        ("lora-r: 1\n", "unknown flag --lora-r (from {}); did you mean --lora_r?"),
        ("config: a.yaml\n", "unknown flag --config (from {}); --help lists them all"),
        ("lora_r: many\n", "--lora_r must be int, got 'many' (from {})"),
        ("lora_r: [1]\n", "--lora_r must be int, got ['1'] (from {})"),
        ("lora_r: 1\nmodel: [\n", "--config={}, line 3 is not valid YAML: expected the node content, but found"),
        ("lora_r: 1\n\tmodel: x\n", "--config={}, line 2 is not valid YAML: found character '\\t'"),
        ("lora_r: 1\nlora_r: 2\n", "--config={}, line 2 is not valid YAML: the key 'lora_r' is given twice"),
        ("? [1]\n: 2\n", "--config={}, line 1 is not valid YAML: a key must be a plain word"),
        ("- lora_r\n", "--config={} must hold lines such as 'learning_rate: 1e-5'; it holds a list"),
        ("lora_r\n", "--config={} must hold lines such as 'learning_rate: 1e-5'; it holds only the text 'lora_r'"),
        ("# nothing\n", "--config={} must hold lines such as 'learning_rate: 1e-5'; it holds nothing"),
        (b"model: \xff\n", "--config={} is not UTF-8 text: invalid start byte at byte 7"),
        (b"model: \x07\n", "--config={} is not valid YAML: unacceptable character #x0007"),
    ],
)
def test_mistakes_in_a_file_name_it(
    text: str | bytes,
    message: str,
    tmp_path: Path,
    trainers: list[Forwarded],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = in_file(tmp_path, text)
    line = refused(capsys, lambda: run(script, [config], forwards=trainers))
    assert line.startswith(message.format(config.removeprefix("--config=")))


def test_missing_file_and_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.yaml"
    line = refused(capsys, lambda: run(script, ["--config", str(missing)]))
    assert line == f"--config={missing} cannot be read: No such file or directory"
    line = refused(capsys, lambda: run(script, [f"--config={tmp_path}"]))
    assert line == f"--config={tmp_path} cannot be read: Is a directory"


def test_a_tag_in_a_file_is_never_acted_on(tmp_path: Path) -> None:
    target = tmp_path / "made"
    config = in_file(tmp_path, f"x: !!python/object/apply:os.mkdir ['{target}']\n")
    assert values([config], Any)["x"] == [str(target)]
    assert not target.exists()


def test_dumped_configuration_is_accepted_back(tmp_path: Path) -> None:
    def main(
        *,
        a: str = "",
        b: str | None = None,
        c: str | list[str] | None = None,
        d: list[str] | None = None,
        e: tuple[float, float] = (0, 0),
        f: Path = Path(),
        g: float = 0.0,
        h: bool | str = False,
        callbacks: list[str | dict[str, Any]] | None = None,
    ) -> None:
        got.update({**locals()})

    got: dict[str, Any] = {}
    wanted = {
        "a": "1e5",
        "b": "None",
        "c": "a,b",
        "d": ["no", "1", "null", "~", "a, b", "[x]", ""],
        "e": (1e-5, 2.0),
        "f": Path("runs/first one"),
        "g": float("inf"),
        "h": "true",
        "callbacks": ["a.B", {"class_path": "a.B", "init_args": {"x": None, "y": "1e5", "z": [1, True, "true", 1e-7]}}],
    }
    path = tmp_path / "config.yaml"
    dump_config(path, wanted)
    run(main, [f"--config={path}"])
    got.pop("got", None)
    assert got == wanted


PLAIN_TYPES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NESTED = st.recursive(PLAIN_TYPES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.sampled_from(["", "None", "a,b", "(a)", "{", "1_0", "0x1", "=", "<<"]), nested=NESTED)
def test_any_string_and_any_nesting_survives_the_round_trip(tmp_path: Path, text: str, nested: Any) -> None:
    path = tmp_path / "config.yaml"
    dump_config(path, {"x": text})
    assert values([f"--config={path}"], str | list[str] | bool | int | None)["x"] == text
    dump_config(path, {"x": nested})
    assert values([f"--config={path}"], Any)["x"] == nested


# --- help and errors ----------------------------------------------------------------------------------------------


def test_help_shows_purpose_examples_and_groups_in_order(
    trainers: list[Forwarded], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["/somewhere/run_fake.py"])
    groups: Mapping[str, Sequence[str]] = {"Model": ("model",), "LoRA": ("lora_r", "use_rslora")}
    run(script, ["--learing_rate=1", "--help"], forwards=trainers, groups=groups)
    assert capsys.readouterr().out == textwrap.dedent(
        """\
        Usage: python run_fake.py [--flag=value ...] [--config=file.yaml]

        Fine-tune a model.

        It prints what it got.

        Examples:
          python run_fake.py --lora_r=8

        Model:
          --model  str  (default: sorting)
              Hub name or folder.

        LoRA:
          --lora_r  int  (default: 0)
          --use_rslora  bool  (default: False)

        Script:
          --steps  int  (default: 1)

        Child:
          --scale  float  (default: 1.0)
              Of the child. Not of the base.

        Base:
          --learning_rate  float  (default: 5e-05)
              Peak learning rate, reached after the warm-up; see AdamW and betas.
          --schedule  {constant, cosine}  (default: constant)
          --betas  tuple[float, float]  (default: (0.9, 0.95))
          --optimizer  str  (default: adamw)
          --collate  any  (default: None)

        General:
          --config  path
              YAML file of flags; those on the command line win over it.
          --help  bool
              Show this text and stop.
        """
    )


def test_help_marks_required_flags_and_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(*, model: str, **rest: Any) -> None: ...

    monkeypatch.setenv("COLUMNS", "60")
    run(main, ["-h"], forwards=[LIGHTNING])
    out = capsys.readouterr().out
    assert "--model  str  (required)" in out
    assert max(map(len, out.splitlines()[1:])) <= 60


WRAPPER = """
import sys
def main(*, model: str = "sorting", **trainer_flags):
    print("main ran", sorted(trainer_flags))
    {body}
from relax.cli import Forwarded, run
try:
    run(main, forwards=[Forwarded("Lightning", "lightning.pytorch.trainer.trainer", "Trainer", brief=True)])
finally:
    loaded = {{name.partition(".")[0] for name in sys.modules}}
    print("heavy:", sorted(loaded & {{"torch", "lightning", "numpy", "transformers", "pydantic", "rich"}}))
"""


def process(argv: str, body: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    code = WRAPPER.format(body=body)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    command = [sys.executable, "-c", code, *argv.split()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize(
    ("argv", "code"), [("--help", 0), ("--modle=x", 2), ("--max_steps=x", 2), ("--model=x --max_steps=3", 0)]
)
def test_nothing_heavy_is_loaded_before_main(argv: str, code: int) -> None:
    done = process(argv)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert ("main ran" in done.stdout) is (argv == "--model=x --max_steps=3")
    assert "Traceback" not in done.stderr


def test_user_error_in_main_is_one_line_without_traceback() -> None:
    body = "from relax.errors import UserError; raise UserError('--model=x does not exist')"
    done = process("", body)
    assert (done.returncode, done.stderr) == (2, "error: --model=x does not exist\n")
    shown = process("", body, RELAX_TRACEBACK="1")
    assert shown.returncode == 2
    assert shown.stderr.startswith("Traceback")
    assert shown.stderr.endswith("error: --model=x does not exist\n")


def test_a_run_that_cannot_go_on_ends_with_one_line_and_code_1() -> None:
    done = process("", "from relax.errors import TrainingStopped; raise TrainingStopped('loss is nan at step 3')")
    assert (done.returncode, done.stderr) == (1, "error: loss is nan at step 3\n")


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.exit(143)", 143, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_other_ends_of_main_pass_through(body: str, code: int, stderr: str) -> None:
    done = process("", body)
    assert done.returncode == code
    assert done.stderr.endswith(stderr)
    assert ("Traceback" in done.stderr) is (code == 1)


def test_a_package_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def main(**rest: Any) -> None: ...

    forwards = [Forwarded("X", "no_such_package.module", "X")]
    assert refused(capsys, lambda: run(main, [], forwards=forwards)) == "the package no_such_package is not installed"


def test_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)
