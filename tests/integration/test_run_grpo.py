"""run_grpo.py as its users run it: the built-in task, own questions and rewards, LoRA, resume, mistakes."""

import contextlib
import io
import json
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_run_sft import here  # noqa: F401  (a fixture)

import run_grpo
from relax.launch.rewarded import evaluated_figures
from relax.rewards import build_rewards
from relax.tasks import TASKS

QUESTIONS = [{"question": f"{a}{b}>", "answer": f"{min(a, b)}{max(a, b)}"} for a in range(10) for b in range(10)]
SMALL = [
    *("--batch_size=16", "--num_generations=4", "--max_new_tokens=4", "--max_steps=3", "--learning_rate=1e-2"),
    *("--logger=none", "--accelerator=cpu", "--enable_progress_bar=false", "--log_samples_every_n_steps=None"),
]
OWN = ["--model=base", "--dataset=qa.jsonl", "--columns={prompt: question}", "--rewards=scores.starts_right"]
SCORES = """
def starts_right(completion, answer):
    return float(completion[:1] == answer[:1])

def fails(completion, answer):
    raise ValueError("no such answer")

def by_length(completions):
    return [-len(text) / 10 for text in completions]
"""


@pytest.fixture
def own(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A working directory with a model, questions and reward functions."""
    Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    Path("scores.py").write_text(SCORES)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(__import__("sys").modules, "scores", raising=False)
    return here


def start(*flags: str) -> tuple[int, str, str]:
    """The script's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_grpo.cli(flags)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def figures(folder: str) -> list[dict[str, float]]:
    """The figures of every line that are the same in every run."""
    rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not re.search("second|throughput", k)} for row in rows]


def weights(folder: str, name: str = "model.safetensors") -> bytes:
    return Path(folder, "model", name).read_bytes()


def test_questions_and_answers_of_ones_own(own: Path) -> None:
    code, out, err = start(*OWN, "--val_split=0.2", "--eval_every_n_steps=2", "--output_dir=run", *SMALL)
    assert code == 0, err
    assert "Training data: 80 prompts of" in out
    assert "Held-out data: 20 prompts of" in out
    assert "Everything lies in run/" in out
    names = {path.name for path in (own / "run").iterdir()}
    assert names == {"run.json", "config.yaml", "metrics.jsonl", "checkpoints", "model"}
    checkpoint = torch.load("run/checkpoints/step=00000003.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["Evaluate"]["step"] == 3
    assert "val/reward_starts_right" in checkpoint["callbacks"]["Evaluate"]["figures"]
    assert Path("run/checkpoints/best.ckpt").exists()
    assert [row["step"] for row in figures("run") if "train/reward" in row] == [1, 2, 3]
    assert {"train/reward_starts_right", "train/truncated"} <= figures("run")[-1].keys()
    from transformers import AutoModelForCausalLM

    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in ("base", "run/model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_samples_are_shown_and_kept(own: Path) -> None:
    flags = [flag for flag in SMALL if "log_samples" not in flag]
    code, out, err = start(*OWN, "--output_dir=run", "--log_samples_every_n_steps=2", *flags)
    assert code == 0, err
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {1, 2}
    assert samples[0]["prompt"] in {row["question"] for row in QUESTIONS}
    assert samples[0]["prompt"] in out
    assert "samples.jsonl   what the policy wrote" in out


def test_several_rewards_with_weights(own: Path) -> None:
    rewards = "--rewards=scores.starts_right:2,scores.by_length:0.5,exact"
    code, _, err = start(*OWN[:-1], rewards, "--output_dir=run", *SMALL)
    assert code == 0, err
    for row in figures("run"):
        parts = {"starts_right": 2.0, "by_length": 0.5, "exact": 1.0}
        total = sum(weight * row[f"train/reward_{name}"] for name, weight in parts.items())
        assert row["train/reward"] == pytest.approx(total, abs=1e-6)


def test_lora_against_its_base_with_a_schedule_of_the_kl_coefficient(own: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = ["--lora_r=4", "--preset=grpo", "--kl_coef=0.1", "--kl_schedule=linear,end=0.05,steps=2"]
    code, out, err = start(*OWN, *flags, "--output_dir=run", *SMALL)
    assert code == 0, err
    assert "of them trained" in out
    assert [row["train/kl_coef"] for row in figures("run")] == pytest.approx([0.1, 0.075, 0.05])
    assert figures("run")[0]["train/kl"] == pytest.approx(0, abs=1e-6)
    assert figures("run")[-1]["train/kl"] > 0
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "run/model")


def test_the_written_configuration_gives_the_same_run(own: Path) -> None:
    flags = ["--preset=gspo", "--temperature=0.8", "--stop_strings=9,8", "--kl_schedule=constant", "--kl_coef=0.01"]
    flags += ["--val_split=10", "--eval_samples=4", "--eval_every_n_steps=2"]
    code, _, err = start(*OWN, *flags, "--output_dir=a", *SMALL)
    assert code == 0, err
    config = yaml.safe_load(Path("a/config.yaml").read_text())
    assert config["rewards"] == ["scores.starts_right"]
    assert config["columns"] == {"prompt": "question"}
    evaluated = torch.load("a/checkpoints/step=00000003.ckpt", weights_only=True)["callbacks"]["Evaluate"]["figures"]
    assert set(evaluated) == set(evaluated_figures(build_rewards("scores.starts_right"), num_samples=4))
    code, _, err = start("--config=a/config.yaml", "--output_dir=b")
    assert code == 0, err
    assert weights("a") == weights("b")
    assert figures("a") == figures("b")
    assert {**yaml.safe_load(Path("b/config.yaml").read_text()), "output_dir": "a"} == config


def test_a_run_that_lost_its_last_steps_goes_on_like_one_that_did_not(own: Path) -> None:
    flags = [*OWN, "--val_split=10", "--eval_every_n_steps=2", "--steps_per_generation=2", "--kl_coef=0.1"]
    flags += ["--checkpoint_every_n_steps=1", "--keep_checkpoints=9", "--kl_schedule=adaptive,target=1,horizon=999"]
    flags += [flag.replace("max_steps=3", "max_steps=6") for flag in SMALL]
    code, _, err = start(*flags, "--output_dir=run")
    assert code == 0, err
    whole = weights("run"), figures("run")
    for step in (4, 5, 6):
        Path(f"run/checkpoints/step={step:08d}.ckpt").unlink()
    code, out, err = start("--config=run/config.yaml", "--resume=auto")
    assert code == 0, err
    assert "Continuing from run/checkpoints/step=00000003.ckpt" in out
    assert (weights("run"), figures("run")) == whole


def test_a_dry_run_takes_an_iteration_and_writes_nothing(own: Path) -> None:
    before = sorted(path for path in own.rglob("*") if "__pycache__" not in str(path))
    code, out, err = start(*OWN, "--val_split=0.2", "--dry_run", *SMALL)
    assert code == 0, err
    assert "Dry run on cpu" in out
    assert "No run was written" in out
    assert sorted(path for path in own.rglob("*") if "__pycache__" not in str(path)) == before


def test_reward_processes_end_with_the_run_however_it_ends(own: Path) -> None:
    flags = [*OWN[:-1], "--reward_workers=1", "--output_dir=run", "--overwrite", *SMALL]
    code, _, err = start(*flags, "--rewards=scores.starts_right,format")
    assert code == 0, err
    assert multiprocessing.active_children() == []
    code, _, err = start(*flags, "--rewards=scores.fails")
    assert code == 1
    assert re.search(r"error: reward 'fails' raised ValueError: no such answer .*prompt .*completion", err)
    assert multiprocessing.active_children() == []
    code, _, err = start(*flags, "--rewards=scores.fails,scores.starts_right", "--reward_on_error=-1")
    assert code == 0, err
    assert all(row["train/reward_fails"] == -1 for row in figures("run"))


def test_a_reasoning_task(own: Path) -> None:
    pytest.importorskip("reasoning_gym")
    task = "--task=reasoning_gym:chain_sum,max_terms=2,min_digits=1,max_digits=1,size=40"
    flags = [task, "--eval_prompts=5", "--reward_workers=0", "--output_dir=run", *SMALL]
    code, _, err = start("--model=base", *flags)
    assert code == 0, err
    assert {"train/reward_reasoning_gym"} <= figures("run")[-1].keys()
    assert Path("run/checkpoints/best.ckpt").exists()


def test_a_signal_stops_the_run_at_a_step_and_says_how_it_goes_on(own: Path) -> None:
    Path("stop.yaml").write_text("callbacks:\n- class_path: killing.SignalAt\n  init_args: {step: 1, signum: 15}\n")
    code, out, err = start(*OWN, "--config=stop.yaml", "--output_dir=run", *SMALL)
    assert code == 128 + 15, err
    assert "Stopped; continue with: python run_grpo.py --config=run/config.yaml --resume=auto" in out
    assert Path("run/checkpoints/step=00000002.ckpt").exists()
    assert "Everything lies in" not in out


MISTAKES = [
    (["--dataset=qa.jsonl", "--rewards=exact"], "--dataset=qa.jsonl needs --model=NAME"),
    (["--model=base"], "--model=base needs data: add --dataset=FILE"),
    (["--model=base", "--dataset=qa.jsonl"], "--dataset needs --rewards=.*--rewards=math"),
    (["--task=reasoning_gym:chain_sum"], "--task=reasoning_gym:chain_sum needs --model=NAME"),
    (["--accelerator=abacus"], "abacus"),  # the task's own is the CPU, the user's wins
    (["--task=sortin"], "--task must be one of .*did you mean sorting"),
    ([*OWN, "--task=sorting"], "only one of --dataset=qa.jsonl and --task=sorting"),
    # Before the model is looked at, which is not there:
    (["--model=./nowhere", *OWN[1:-1], "--rewards=exac"], "no reward 'exac'; did you mean exact"),
    (["--model=./nowhere", *OWN[1:-1], "--rewards=exact:much"], "weight behind the colon must be a number, got 'much'"),
    (["--model=./nowhere", *OWN[1:-1], "--rewards=scores.start"], "scores has no 'start'"),
    (["--model=./nowhere", *OWN[1:], "--reward_on_error=ignore"], "--reward_on_error"),
    (["--model=./nowhere", *OWN[1:], "--reward_time_limit=0"], "--reward_time_limit must be above 0"),
    (["--model=./nowhere", "--dataset=bare.jsonl", "--rewards=exact"], "'exact' needs the column 'answer', .* prompt"),
    (
        ["--model=./nowhere", *OWN[1:2], OWN[3], "--columns={prompt: q}"],
        "qa.jsonl:1: --columns: .*no such column",
    ),
    (["--model=./nowhere", *OWN[1:], "--val_dataset=bare.jsonl"], "needs the column 'answer'|'question'"),
    (["--model=./nowhere", *OWN[1:]], "nowhere"),
    (["--model=./nowhere", *OWN[1:], "--num_generations=1"], "--num_generations must be at least 2, got 1"),
    (["--model=./nowhere", *OWN[1:], "--num_generations=3"], "whole groups of --num_generations=3"),
    (["--model=./nowhere", *OWN[1:], "--preset=ppo"], "--preset must be one of"),
    (["--model=./nowhere", *OWN[1:], "--temperature=0"], "--temperature must be above 0"),
    (["--model=./nowhere", *OWN[1:], "--eval_samples=0"], "--eval_samples must be above 0"),
    (["--model=./nowhere", *OWN[1:], "--kl_schedule=linea,end=0,steps=9"], "--kl_schedule must be one of"),
    (["--model=./nowhere", *OWN[1:], "--kl_schedule=linear,end=0"], "write it as linear,end=NUMBER,steps=NUMBER"),
    (["--model=./nowhere", *OWN[1:], "--kl_schedule=linear,end=x,steps=9"], "must be float, got 'x'"),
    (["--model=./nowhere", *OWN[1:], "--monitor=val/pass@2"], "--monitor=val/pass@2 needs held-out prompts"),
    (["--model=./nowhere", *OWN[1:], "--kl_schedule=linear,end=0,steps=9"], "KL coefficient above 0 .* give --kl_coef"),
    (
        ["--model=./nowhere", *OWN[1:], "--kl_schedule=constant", "--preset=grpo", "--kl_coef=0"],
        "ConstantKL needs a KL coef",
    ),
    (["--model=./nowhere", *OWN[1:], "--kl_schedule=constant", "--preset=grpo"], "nowhere"),
    *[
        (["--model=./nowhere", *OWN[1:], f"--{theirs}=1"], f"unknown flag --{theirs} .*; did you mean --{ours}\\?")
        for theirs, ours in {
            **{"beta": "kl_coef", "epsilon": "clip_low", "epsilon_high": "clip_high", "delta": "ratio_max"},
            **{"loss_type": "aggregation", "scale_rewards": "advantage", "n": "num_generations"},
            **{"max_completion_length": "max_new_tokens", "num_train_epochs": "max_epochs"},
            **{"per_device_eval_batch_size": "micro_batch_size", "eval_steps": "eval_every_n_steps"},
            **{"gradient_accumulation_steps": "accumulate_grad_batches", "lr": "learning_rate"},
        }.items()
    ],
    (["--model=./nowhere", *OWN[1:], "--packing_length=64"], "unknown flag --packing_length"),
    (["--model=./nowhere", *OWN[1:], "--streaming"], "unknown flag --streaming"),
    (["--model=./nowhere", *OWN[1:], "--lora_alpha=4"], "--lora_alpha: no effect without --lora_r"),
    (["--model=base", "--dataset=qa.jsonl", "--rewards=exact"], "--columns='{prompt: question}'"),
    (["--model=base", "--dataset=empty.jsonl", "--rewards=exact"], "empty.jsonl: the file is empty"),
    ([*OWN, "--max_prompt_length=2"], "longer than --max_prompt_length=2.*raise it"),
    ([*OWN, "--system_prompt=Sort!"], "--system_prompt needs a chat template"),
    (["--model=./nowhere", *OWN[1:], "--val_split=9", "--monitor=val/acuracy"], "did you mean val/accuracy"),
    ([*OWN, "--val_split=0.5", "--val_dataset=qa.jsonl"], "only one of"),
    ([*OWN, "--dry_run", "--overwrite"], "--dry_run writes nothing and starts anew"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_no_traceback(flags: list[str], message: str, own: Path) -> None:
    Path("empty.jsonl").write_text("")
    Path("bare.jsonl").write_text('{"prompt": "52>"}\n')
    given = " ".join(flags)
    code, _, err = start(*flags, "--output_dir=run", *(f for f in SMALL if f.split("=")[0] not in given))
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
    assert "Traceback" not in err


def test_the_help_says_what_an_epoch_is() -> None:
    code, out, _ = start("--help")
    assert code == 0
    assert "--max_epochs counts iterations" in " ".join(out.split())


def test_flags_without_effect_are_told(own: Path) -> None:
    with pytest.warns(UserWarning, match="--eval_prompts, --eval_samples: no effect without held-out prompts"):
        code, _, err = start(*OWN, "--eval_samples=4", "--eval_prompts=9", "--output_dir=run", *SMALL)
    assert code == 0, err
    assert not Path("run/checkpoints/best.ckpt").exists()
    with pytest.warns(UserWarning, match="--dataset_name: no effect without --dataset"):
        start("--dataset_name=main", "--dry_run", "--max_steps=1", "--logger=none")


@pytest.mark.slow
def test_the_built_in_job_learns_in_forty_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By accuracy on held-out prompts, asked by transformers' own generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from relax.tasks.grading import accuracy

    monkeypatch.chdir(tmp_path)
    code, out, err = start("--max_steps=40", "--logger=none", "--output_dir=run", "--seed=1")
    assert code == 0, err
    task = TASKS["sorting"]
    model, tokenizer = (cls.from_pretrained("run/model") for cls in (AutoModelForCausalLM, AutoTokenizer))
    right = accuracy(model, tokenizer, task.eval_rows(), task.grade)
    assert right > 0.9
    checkpoint: dict[str, Any] = torch.load("run/checkpoints/step=00000040.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["Evaluate"]["figures"]["val/accuracy"] == pytest.approx(right)
    assert "Model of the task: 101,568 parameters" in out
    assert "Accuracy before training: 49.2% of 500 held-out prompts" in out
    assert f"Accuracy after training: {right:.1%} of 500 held-out prompts" in out


@pytest.mark.slow
def test_the_built_in_job_works_without_a_flag_and_without_the_network(tmp_path: Path) -> None:
    """But for the number of steps, which is cut."""
    from test_privacy import SWITCHES
    from tiny_models import network_calls

    root = str(Path(run_grpo.__file__).parent)
    program = f"import sys; sys.path.insert(0, {root!r}); import run_grpo; run_grpo.cli(['--max_steps=3'])"
    assert network_calls(program, tmp_path, without=SWITCHES) == []
    [folder] = (tmp_path / "runs").glob("grpo-*")
    assert (folder / "model/model.safetensors").exists()
    assert (tmp_path / "runs/mlflow.db").exists()


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_go_on_when_killed(own: Path) -> None:
    """Figures of held-out prompts, kept samples and the schedule of the KL coefficient included."""
    from test_two_processes import start as start_process

    flags = [flag for flag in SMALL if "log_samples" not in flag and "max_steps" not in flag]
    flags += [*OWN, "--max_steps=4", "--val_split=10", "--eval_every_n_steps=2", "--log_samples_every_n_steps=2"]
    flags += ["--kl_coef=0.1", "--kl_schedule=adaptive,target=1,horizon=999", "--checkpoint_every_n_steps=1"]
    flags += ["--steps_per_generation=2"]
    pair = ["--devices=2", "--strategy=ddp"]
    script = str(Path(run_grpo.__file__))
    (own / "kill.yaml").write_text("callbacks:\n- class_path: killing.KillAt\n  init_args: {step: 3, micro_batch: 0}\n")

    whole = start_process(script, *flags, *pair, "--output_dir=whole", cwd=own)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert whole.stdout.count("Training data:") == 1, "only rank 0 speaks"
    killed = start_process(script, *flags, *pair, "--output_dir=killed", "--config=kill.yaml", cwd=own)
    assert killed.returncode != 0
    resumed = start_process(script, *flags, *pair, "--output_dir=killed", "--resume=auto", cwd=own)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert figures("killed") == figures("whole")
    assert weights("killed") == weights("whole")
    assert Path("killed/samples.jsonl").read_bytes() == Path("whole/samples.jsonl").read_bytes()

    code, _, err = start(*flags, "--output_dir=alone")
    assert code == 0, err
    for one, two in zip(figures("alone"), figures("whole"), strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
