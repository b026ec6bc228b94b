"""run_reward.py as its users run it: own pairs, LoRA, what it exports, configuration, resume, mistakes."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from test_run_grpo import figures, weights
from test_run_sft import here  # noqa: F401  (a fixture)

import run_reward
from relax.rewards.reward_model import RewardModel

PAIRS = [
    {
        "prompt": f"{a}{b}>",
        "chosen": f"{min(a, b)}{max(a, b)}",
        "rejected": f"{max(a, b)}{min(a, b)}",
        "gap": abs(a - b),
    }
    for a in range(10)
    for b in range(10)
    if a != b
]
SMALL = [
    *("--batch_size=16", "--max_epochs=1", "--learning_rate=1e-2", "--logger=none", "--accelerator=cpu"),
    "--enable_progress_bar=false",
]
LONGER = [flag.replace("max_epochs=1", "max_epochs=8") for flag in SMALL]
OWN = ["--model=base", "--dataset=pairs.jsonl"]


@pytest.fixture
def own(here: Path) -> Path:  # noqa: F811
    """A working directory with a model and preference pairs."""
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return here


def start(*flags: str) -> tuple[int, str, str]:
    """The script's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_reward.cli(flags)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_pairs_of_ones_own_and_the_exported_folder(own: Path) -> None:
    """It learns which is better, and transformers scores what the reward model of a policy scores."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    code, out, err = start(*OWN, "--val_split=0.2", "--monitor=val/loss", "--output_dir=run", *LONGER)
    assert code == 0, err
    assert "a fresh score head is put on it" in out
    assert "Everything lies in run/" in out
    assert "--reward_model=run/model" in out
    last = [row for row in figures("run") if "val/accuracy" in row][-1]
    assert last["val/accuracy"] > 0.9
    assert f"{last['val/accuracy']:.1%} of 18 held-out pairs" in out
    assert {"train/accuracy", "train/calibration_error", "train/reward_margin"} <= figures("run")[0].keys()
    model, tokenizer = (
        kind.from_pretrained("run/model") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    texts = [PAIRS[0]["prompt"] + PAIRS[0][answer] for answer in ("chosen", "rejected")]
    with torch.no_grad():
        theirs = [float(model(**tokenizer(text, return_tensors="pt")).logits) for text in texts]
    ours = RewardModel("run/model")([PAIRS[0]["prompt"]] * 2, [PAIRS[0]["chosen"], PAIRS[0]["rejected"]])
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[0] > ours[1]


def test_an_adapter_is_exported_judges_and_is_continued(own: Path) -> None:
    code, _, err = start(*OWN, "--lora_r=4", "--merge_adapter", "--output_dir=first", *LONGER)
    assert code == 0, err
    assert json.loads(Path("first/model/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    scores = [RewardModel(folder)(["12>"] * 2, ["12", "21"]) for folder in ("first/model", "first/model/merged")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    code, _, err = start(*OWN, "--adapter=first/model", "--output_dir=second", *SMALL)
    assert code == 0, err
    assert figures("second")[0]["train/loss"] < 0.8 * figures("first")[0]["train/loss"]


def test_a_reward_model_is_gone_on_with(own: Path) -> None:
    code, _, err = start(*OWN, "--output_dir=first", *SMALL)
    assert code == 0, err
    code, out, err = start("--model=first/model", OWN[1], "--output_dir=second", *SMALL)
    assert code == 0, err
    assert "fresh" not in out
    assert figures("second")[0]["train/loss"] < figures("first")[0]["train/loss"]


def test_the_written_configuration_gives_the_same_run(own: Path) -> None:
    flags = ["--margin_column=gap", "--centering_coef=0.01", "--val_split=9", "--max_length=64"]
    code, _, err = start(*OWN, *flags, "--output_dir=a", *SMALL)
    assert code == 0, err
    config = yaml.safe_load(Path("a/config.yaml").read_text())
    assert (config["margin_column"], config["centering_coef"]) == ("gap", 0.01)
    code, _, err = start("--config=a/config.yaml", "--output_dir=b")
    assert code == 0, err
    assert weights("a") == weights("b")
    assert figures("a") == figures("b")
    assert {**yaml.safe_load(Path("b/config.yaml").read_text()), "output_dir": "a"} == config


def test_a_run_that_lost_its_last_steps_goes_on_like_one_that_did_not(own: Path) -> None:
    flags = [*OWN, "--checkpoint_every_n_steps=1", "--keep_checkpoints=9", "--output_dir=run", *SMALL]
    code, _, err = start(*flags)
    assert code == 0, err
    whole = weights("run"), figures("run")
    for step in (4, 5, 6):
        Path(f"run/checkpoints/step={step:08d}.ckpt").unlink()
    code, out, err = start("--config=run/config.yaml", "--resume=auto")
    assert code == 0, err
    assert "Continuing from run/checkpoints/step=00000003.ckpt" in out
    assert (weights("run"), figures("run")) == whole


def test_a_dry_run_takes_a_step_and_writes_nothing(own: Path) -> None:
    before = sorted(own.rglob("*"))
    code, out, err = start(*OWN, "--val_split=0.2", "--dry_run", *SMALL)
    assert code == 0, err
    assert "Dry run on cpu" in out
    assert sorted(own.rglob("*")) == before


MISTAKES = [
    (["--dataset=pairs.jsonl"], "--dataset=pairs.jsonl needs --model=NAME"),
    (["--model=base"], "--model=base needs data"),
    ([*OWN, "--task=sorting"], "only one of"),
    ([*OWN, "--val_split=0.5", "--val_dataset=pairs.jsonl"], "only one of"),
    ([*OWN, "--monitor=val/loss"], "--monitor=val/loss needs validation data"),
    ([*OWN, "--centering_coef=-1"], "--centering_coef must"),
    (["--model=base", "--dataset=same.jsonl"], "same.jsonl:1: 'chosen' and 'rejected' are the same"),
    (["--model=base", "--dataset=rows.jsonl"], "rows.jsonl"),
    (["--model=./nowhere", "--dataset=pairs.jsonl"], "nowhere"),
    ([*OWN, "--lora_alpha=4"], "--lora_alpha: no effect without --lora_r"),
    ([*OWN, "--center_rewards_coefficient=0.1"], "did you mean --centering_coef"),
    ([*OWN, "--packing_length=9"], "packing_length"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_no_traceback(flags: list[str], message: str, own: Path) -> None:
    Path("same.jsonl").write_text('{"prompt": "1>", "chosen": "1", "rejected": "1"}\n')
    code, _, err = start(*flags, "--output_dir=run", *SMALL)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_built_in_job_learns_to_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs whose prompts it never saw, and right answers against the task's own demonstrators."""
    from relax.tasks import TASKS
    from relax.tasks.sorting import lazy_solution

    monkeypatch.chdir(tmp_path)
    code, out, err = start("--logger=none", "--output_dir=run")
    assert code == 0, err
    [right] = re.findall(r"([\d.]+)% of 500 held-out pairs", out)
    assert float(right) > 90
    rows = [row for row in TASKS["sorting"].eval_rows(200, seed=5) if lazy_solution(row["prompt"]) != row["answer"]]
    prompts = [row["prompt"] for row in rows]
    judge = RewardModel("run/model", batch_size=200)
    good = judge(prompts, [row["answer"] for row in rows])
    lazy = judge(prompts, [lazy_solution(prompt) for prompt in prompts])
    assert sum(g > b for g, b in zip(good, lazy, strict=True)) > 0.95 * len(rows)
