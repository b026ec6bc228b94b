"""run_sft.py on the data that people bring: formats, mixtures, streams, the audit, the cache, a dry run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_run_sft import ROWS, SMALL, here, start  # noqa: F401  (a fixture)


def figures(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("throughput/")} for row in rows]


def write_lines(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_audit_is_printed_and_kept(here: Path) -> None:  # noqa: F811
    code, out, err = start("--model=base", "--dataset=rows.jsonl", "--output_dir=run", *SMALL)
    assert code == 0, err
    text = (here / "run/data_audit.txt").read_text()
    assert text in out
    for expected in ("Training data: 100 rows, ", " of them trained", "row lengths", "⟦"):
        assert expected in text
    audit = json.loads((here / "run/data_audit.json").read_text())
    assert audit["rows_kept"] == 100
    assert audit["tokens"] == sum(len(row["prompt"]) + len(row["completion"]) + 1 for row in ROWS)
    assert audit["trained_tokens"] == sum(len(row["completion"]) + 1 for row in ROWS)


def test_a_dry_run_audits_trains_the_largest_step_and_writes_nothing(here: Path) -> None:  # noqa: F811
    before = sorted(here.rglob("*"))
    code, out, err = start("--model=base", "--dataset=rows.jsonl", "--dry_run", *SMALL)
    assert code == 0, err
    assert "Training data: 100 rows" in out
    assert "Dry run on cpu: the step with the largest micro-batch (" in out
    assert "No run was written" in out
    assert sorted(here.rglob("*")) == before
    for flag in ("--resume=auto", "--overwrite"):
        code, _, err = start("--model=base", "--dataset=rows.jsonl", "--dry_run", "--output_dir=run", flag, *SMALL)
        assert code == 2
        assert "--dry_run writes nothing and starts anew" in err


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        (["--columns={completion: chosen}"], [{"prompt": r["prompt"], "chosen": r["completion"]} for r in ROWS]),
        (["--data_format=prompt_completion"], [r | {"text": "123"} for r in ROWS]),
        (["--weight_column=w"], [r | {"w": 1} for r in ROWS]),
    ],
)
def test_other_columns_train_like_the_plain_ones(here: Path, flags: list[str], rows: list) -> None:  # noqa: F811
    write_lines("other.jsonl", rows)
    assert start("--model=base", "--dataset=rows.jsonl", "--output_dir=plain", *SMALL)[0] == 0
    code, _, err = start("--model=base", "--dataset=other.jsonl", "--output_dir=run", *flags, *SMALL)
    assert code == 0, err
    assert figures(here / "run") == figures(here / "plain")


def test_a_mixture_by_weights_draws_its_shares(here: Path) -> None:  # noqa: F811
    write_lines("few.jsonl", ROWS[:20])
    code, out, err = start("--model=base", "--dataset=rows.jsonl:0.25,few.jsonl:0.75", "--output_dir=run", *SMALL)
    assert code == 0, err
    assert "Training data: 120 rows" in out
    assert "rows.jsonl  25.0% of the rows" in out
    assert "read 4.50x an epoch" in out
    assert len(figures(here / "run")) == 6


def test_a_stream_stops_and_goes_on_like_one_that_did_not_stop(here: Path) -> None:  # noqa: F811
    flags = [
        "--model=base",
        "--dataset=rows.jsonl",
        "--streaming",
        "--schedule=constant",
        "--shuffle_buffer=32",
        *SMALL,
    ]
    assert start(*flags, "--output_dir=whole")[0] == 0
    assert start(*flags, "--output_dir=part", "--max_steps=3")[0] == 0
    code, _, err = start(*flags, "--output_dir=part", "--resume=auto")
    assert code == 0, err
    assert len(figures(here / "whole")) == 5
    assert figures(here / "part") == figures(here / "whole")
    weights = [(here / name / "model/model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_a_second_run_starts_without_tokenizing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    flags = ["--model=base", "--dataset=rows.jsonl", f"--data_cache={here / 'cache'}", *SMALL]
    assert start(*flags, "--output_dir=first")[0] == 0
    entries = [path for path in (here / "cache").iterdir() if path.is_dir()]
    assert len(entries) == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("rows are tokenized a second time")

    monkeypatch.setattr("relax.data.tokens.encoding.RowEncoder.encode", refuse)
    code, _, err = start(*flags, "--output_dir=second")
    assert code == 0, err
    assert figures(here / "second") == figures(here / "first")
    with pytest.raises(AssertionError, match="a second time"):
        start(*flags, "--output_dir=third", "--train_on=all")  # other options, other tokens


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ('{"prompt": "1>", "completion": "1"}\n{"prompt": "2>",\n', [], "data.jsonl:2: not valid JSON"),
        ('{"prompt": "1>", "completion": "1"}\n\n{"prompt": "2>", "completion": 2}\n', [], "data.jsonl:3: "),
        ('{"prompt": "1>", "completion": ""}\n', [], "data.jsonl:1: the completion is empty"),
        ('{"question": "1"}\n', [], "no format fits the columns ['question']"),
        ('{"prompt": "1>", "completion": "1", "w": -1}\n', ["--weight_column=w"], "data.jsonl:1: "),
        ('{"prompt": "1>", "completion": "111111"}\n', ["--max_length=4", "--truncation=error"], "data.jsonl:1: "),
        ('{"prompt": "1>", "chosen": "1", "rejected": "2"}\n', [], "preference"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["--streaming", "--max_steps=2"]], ids=["at hand", "streamed"])
def test_a_bad_row_gets_one_line_with_file_and_line(
    here: Path,  # noqa: F811
    mode: list[str],
    content: str,
    flags: list[str],
    message: str,
) -> None:
    (here / "data.jsonl").write_text(content)
    code, _, err = start("--model=base", "--dataset=data.jsonl", "--output_dir=run", *flags, *mode, *SMALL)
    assert code == 2
    lines = [line for line in err.splitlines() if line and not line.startswith("warning:")]
    assert len(lines) == 1, err
    assert message in lines[0]


def test_the_cache_of_the_tests_is_not_the_users() -> None:
    assert "relax-tests-" in os.environ["RELAX_CACHE"]


def test_packed_sequences_are_audited_as_such(here: Path) -> None:  # noqa: F811
    flags = ["--model=base", "--dataset=rows.jsonl", "--packing_length=32", "--output_dir=run", "--micro_batch_size=2"]
    code, out, err = start(*flags, *SMALL)
    assert code == 0, err
    # 100 rows of 6 tokens: five go into 32
    assert "packed, 93.8% of 32 tokens filled in 20 packed sequences, the largest 30 tokens" in out


def test_a_run_is_continued_only_with_the_objective_it_had(here: Path) -> None:  # noqa: F811
    flags = ["--model=base", "--dataset=rows.jsonl", "--output_dir=run", "--schedule=constant", *SMALL]
    assert start(*flags, "--max_steps=2")[0] == 0
    code, _, err = start(*flags, "--max_steps=4", "--resume=auto", "--loss=dft")
    assert code == 2
    assert "a run can only be resumed with the same loss: the checkpoint has nll, this run dft" in err


def test_a_finished_run_that_is_made_longer_goes_on_at_the_rate_of_the_longer_schedule(here: Path) -> None:  # noqa: F811
    flags = ["--model=base", "--dataset=rows.jsonl", "--output_dir=run", "--schedule=linear", *SMALL]
    assert start(*flags, "--max_steps=2")[0] == 0
    assert start(*flags, "--max_steps=4", "--resume=auto")[0] == 0
    rates = [row["train/learning_rate"] for row in figures(here / "run")]
    assert rates == pytest.approx([2e-5, 1e-5, 1e-5, 0.5e-5])
