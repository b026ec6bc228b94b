"""README and docs say what is so: their code compiles, their flags, files, links, names, rows and messages exist.

That the pages' Python blocks also run is `tests/integration/test_examples.py`.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from relax.data import FORMATS, EncodingOptions, recognise, tokenize_row
from relax.errors import UserError
from relax.plugins import load_object

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/relax"))
from byte_tokenizers import CHATML, byte_tokenizer  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("trainers", "callbacks", "relax", "tests", "benchmarks", "docs", "examples", ".ci")
KINDS = ("sft", "grpo", "rl", "reward")
PLACEHOLDERS = {"name", "noname"}  # "flags are written `--name=value`"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:run_(sft|grpo|rl|reward)\.py|relax-(sft|grpo|rl|reward))\b([^\n&|;#]*)")
_FLAG = re.compile(r"(?:^|(?<=\s))--([a-z]\w*)")
_DOTTED = re.compile(r"(?:relax|callbacks|trainers)(?:\.\w+)+")


def read(page: Path) -> str:
    """The page, lines that end in a backslash joined."""
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in _FENCE.findall(read(page)) if language in languages]


def inline(page: Path) -> list[str]:
    """What stands in backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", read(page)))


def flags(page: Path, *kinds: str) -> set[str]:
    """Flags in the commands of the scripts of these kinds, and where a word in backticks begins with one."""
    text = "\n".join([*blocks(page, "bash", ""), *inline(page)])
    found = [
        name
        for kind, script, arguments in _COMMAND.findall(text)
        if (kind or script) in kinds
        for name in _FLAG.findall(arguments)
    ]
    if len(kinds) > 1:  # a flag alone may be of any
        found += [name for words in inline(page) if words.startswith("--") for name in _FLAG.findall(words)]
    return set(found) - PLACEHOLDERS


@pytest.fixture(scope="session")
def known_flags() -> dict[str, set[str]]:
    """By kind of script."""
    found = {}
    for kind in KINDS:
        command = [sys.executable, f"run_{kind}.py", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        found[kind] = set(re.findall(r"^  --(\w+)  ", done.stdout, re.MULTILINE))
    return found


def pages(test):  # type: ignore[no-untyped-def]
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


@pages
def test_python_blocks_compile(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python"), 1):
        compile(textwrap.dedent(block), f"{page.name}, block {number}", "exec")


@pages
def test_flags_exist(page: Path, known_flags: dict[str, set[str]]) -> None:
    for kind in KINDS:
        assert {"model", "lora_r", "learning_rate", "devices", "config"} <= known_flags[kind]
        assert flags(page, kind) <= known_flags[kind]
    assert flags(page, *KINDS) <= set().union(*known_flags.values())


@pages
def test_files_and_links_exist(page: Path) -> None:
    paths = [word for word in inline(page) if re.fullmatch(r"[\w.][\w./-]*", word) and word.split("/")[0] in FOLDERS]
    missing = [path for path in paths if "/" in path and not (ROOT / path).exists()]
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _FENCE.sub("", read(page)))
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pages
def test_names_exist(page: Path) -> None:
    for word in inline(page):
        dotted = _DOTTED.match(word)
        if dotted is not None:
            load_object(dotted[0])


def test_the_checks_find_what_they_look_for() -> None:
    """Else a change of layout could turn them off unnoticed."""
    assert {"lora_r", "train_on", "micro_batch_size"} <= flags(ROOT / "docs/sft.md", *KINDS)
    assert {"devices", "num_nodes", "resume"} <= flags(ROOT / "docs/running.md", *KINDS)
    assert "nproc_per_node" not in flags(ROOT / "docs/running.md", *KINDS)
    assert len(blocks(ROOT / "docs/callbacks.md", "python")) > 8


def test_the_example_rows_are_of_the_formats_they_stand_for() -> None:
    listed = next(body for body in blocks(ROOT / "docs/data.md", "") if body.startswith("messages "))
    rows = [line.split(maxsplit=1) for line in listed.splitlines()]
    assert {name for name, _ in rows} == FORMATS.keys()
    for name, row in rows:
        assert recognise(json.loads(row)).name == name
        FORMATS[name].read(json.loads(row))


def test_bad_rows_are_refused_as_the_page_says() -> None:
    tokenizer = byte_tokenizer(CHATML)
    table = re.findall(r"^\| `(\{.*\})` \| `(.*)` \|$", read(ROOT / "docs/data.md"), re.MULTILINE)
    assert len(table) > 10
    for row, said in table:
        cells = json.loads(row)
        with pytest.raises(UserError) as refused:
            tokenize_row(cells, tokenizer, EncodingOptions(weight_column="w" if "w" in cells else None))
        expected = ".*".join(re.escape(part.strip()) for part in said.split("..."))
        assert re.fullmatch(rf"data(:row 1)?: {expected}", str(refused.value)), (row, str(refused.value))
