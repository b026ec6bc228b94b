"""run_rl.py as its users run it: the built-in task, own prompts and reward models, critics, resume, mistakes."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from test_run_grpo import OWN, figures, own, weights  # noqa: F401  (own is a fixture)
from test_run_sft import here  # noqa: F401  (a fixture that own needs)

import run_rl
from relax.critic import build_critic
from relax.launch import loading
from relax.launch.flags import ModelFlags
from relax.rewards.reward_model import RewardModel
from relax.tasks import TASKS

SMALL = [
    *("--batch_size=8", "--steps_per_generation=2", "--num_iterations=2", "--max_new_tokens=4", "--max_steps=4"),
    *("--learning_rate=1e-2", "--logger=none", "--accelerator=cpu", "--enable_progress_bar=false"),
    "--log_samples_every_n_steps=None",
]
WATCHED = [*SMALL[:-1], "--log_samples_every_n_steps=1"]
LENGTHS = [*OWN[:-1], "--rewards=scores.by_length"]  # which differ in any case
ASKED = ["--model=base", "--dataset=qa.jsonl", "--columns={prompt: question}"]


def start(*flags: str) -> tuple[int, str, str]:
    """The script's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_rl.cli(flags)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def learned(folder: str) -> list[dict[str, float]]:
    """The figures of the optimizer steps."""
    return [row for row in figures(folder) if "train/reward" in row]


def assert_scored_by(judge: RewardModel) -> None:
    """The kept samples of the run have its scores."""
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    completions = [sample["completion"].removesuffix("<eos>") for sample in samples]
    scores = judge([sample["prompt"] for sample in samples], completions)
    assert len({round(score, 4) for score in scores}) > 1
    assert [sample["score"] for sample in samples] == pytest.approx(scores, abs=1e-5)


@pytest.fixture
def judge(own: Path) -> str:  # noqa: F811
    """A reward model of the same shape as ``base``, whose weights are as they came."""
    from transformers import AutoTokenizer

    from relax.sequence_classifier import load_classifier

    load_classifier("base").save_pretrained("judge")
    AutoTokenizer.from_pretrained("base").save_pretrained("judge")
    return "judge"


@pytest.fixture
def adapter_judge(own: Path) -> str:  # noqa: F811
    """A reward model that is an adapter of ``base``."""
    from transformers import AutoTokenizer

    from relax.lora import LoRASettings, add_lora
    from relax.sequence_classifier import load_classifier

    torch.manual_seed(0)
    model = add_lora(load_classifier("base"), LoRASettings(2), task_type="SEQ_CLS")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained("judge")
    AutoTokenizer.from_pretrained("base").save_pretrained("judge")
    return "judge"


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_prompts_and_rewards_of_ones_own(critic: str, own: Path) -> None:  # noqa: F811
    flags = [*OWN, "--val_split=0.2", "--eval_every_n_steps=2", f"--critic={critic}", "--output_dir=run"]
    code, out, err = start(*flags, *SMALL)
    assert code == 0, err
    assert "Held-out data: 20 prompts of" in out
    assert "Everything lies in run/" in out
    rows = learned("run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    critics = {"value_loss", "explained_variance", "value", "return", "critic_grad_norm", "objective_with_kl"}
    assert {f"train/{name}" for name in critics} <= rows[-1].keys()
    assert [row["train/epochs_done"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert Path("run/checkpoints/best.ckpt").exists()
    from transformers import AutoModelForCausalLM

    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in ("base", "run/model"))
    assert before.keys() == after.keys(), "the critic is not exported"
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_reward_model_scores_and_the_task_is_looked_at(own: Path, judge: str) -> None:  # noqa: F811
    flags = ["--model=base", "--task=sorting", f"--reward_model={judge}", "--eval_every_n_steps=4", "--eval_prompts=5"]
    code, _, err = start(*flags, "--output_dir=run", *WATCHED)
    assert code == 0, err
    for row in learned("run"):
        assert row["train/reward"] == row["train/reward_model"]
        assert 0 <= row["train/reward_sorting"] <= 1
    assert_scored_by(RewardModel(judge))
    best = torch.load("run/checkpoints/step=00000004.ckpt", weights_only=True)["callbacks"]["Evaluate"]["figures"]
    assert {"val/accuracy", "val/reward_sorting", "val/reward_model"} <= best.keys()


def test_rewards_are_added_to_a_reward_model(own: Path, judge: str) -> None:  # noqa: F811
    flags = [*ASKED, f"--reward_model={judge}", "--rewards=scores.by_length:0.5", "--output_dir=run"]
    code, _, err = start(*flags, *SMALL)
    assert code == 0, err
    for row in figures("run"):
        total = row["train/reward_model"] + 0.5 * row["train/reward_by_length"]
        assert row["train/reward"] == pytest.approx(total, abs=1e-6)


def test_without_another_judge_the_best_checkpoint_is_by_the_reward(own: Path, judge: str) -> None:  # noqa: F811
    flags = [*ASKED, f"--reward_model={judge}", "--val_split=10", "--eval_every_n_steps=2", "--output_dir=run"]
    code, _, err = start(*flags, *SMALL)
    assert code == 0, err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    reached = {row["step"]: row["val/reward"] for row in rows if "val/reward" in row}
    assert torch.load("run/checkpoints/best.ckpt", weights_only=True)["global_step"] == max(reached, key=reached.get)


@pytest.mark.parametrize("critic", [None, "separate"])
def test_an_adapter_of_the_same_base_judges_on_the_backbone(
    critic: str | None,
    own: Path,  # noqa: F811
    adapter_judge: str,
) -> None:
    """It scores what the reward model with a backbone of its own scores, and is in no export."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = [*ASKED, "--lora_r=2", f"--reward_model={adapter_judge}", "--output_dir=run"]
    flags += [f"--critic={critic}"] if critic else []
    code, _, err = start(*flags, *WATCHED)
    assert code == 0, err
    assert_scored_by(RewardModel(adapter_judge))
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "run/model")
    assert list(exported.peft_config) == ["default"]
    assert {path.name for path in Path("run/model").iterdir() if path.is_dir()} == set()
    checkpoint = torch.load("run/checkpoints/step=00000004.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if ".reward." in name]


@pytest.mark.parametrize("kind", ["base", "judge"])
def test_a_critic_of_another_model(kind: str, own: Path, judge: str) -> None:  # noqa: F811
    """From a reward model it begins with the head of that, from a language model with values of 0."""
    code, _, err = start(*OWN, f"--critic_model={kind}", "--output_dir=run", *SMALL)
    assert code == 0, err
    assert (figures("run")[0]["train/value"] == 0) == (kind == "base")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["critic_model"] == kind


def test_a_critic_that_reads_tokens_by_other_numbers_is_refused(own: Path, judge: str) -> None:  # noqa: F811
    file = Path(judge) / "tokenizer.json"
    text = json.loads(file.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["2"], vocabulary["3"] = vocabulary["3"], vocabulary["2"]
    file.write_text(json.dumps(text))
    code, _, err = start(*OWN, f"--critic_model={judge}", "--output_dir=run", *SMALL)
    assert code == 2
    assert "--critic_model=judge has another tokenizer" in err
    assert "2 tokens differ" in err


def test_a_critic_of_a_reward_model_that_is_an_adapter(own: Path, adapter_judge: str) -> None:  # noqa: F811
    flags = ModelFlags(model="base")
    policy, tokenizer = loading.load_policy(flags, lora=None, adapter=None, task=None, seed=0)
    critic = build_critic("separate", policy, loading.load_critic(adapter_judge, flags, tokenizer))
    assert all(parameter.requires_grad for parameter in critic.parameters())
    reward = RewardModel(adapter_judge)
    ids = torch.tensor([reward.tokenizer("12>12").input_ids])
    with torch.no_grad():
        value = critic.head(critic.body(input_ids=ids).last_hidden_state[0, -1])
    assert value.item() == pytest.approx(reward(["12>"], ["12"])[0], abs=1e-5)


def test_the_written_configuration_gives_the_same_run(own: Path) -> None:  # noqa: F811
    flags = [
        "--value_clip=None",
        "--target_kl=0.5",
        "--normalize_rewards",
        "--kl_schedule=adaptive,target=1,horizon=99",
    ]
    flags += ["--critic_learning_rate=1e-3", "--critic_warmup_steps=1", "--val_split=10", "--eval_every_n_steps=2"]
    code, _, err = start(*LENGTHS, *flags, "--output_dir=a", *SMALL)
    assert code == 0, err
    config = yaml.safe_load(Path("a/config.yaml").read_text())
    assert (config["value_clip"], config["target_kl"], config["critic_warmup_steps"]) == (None, 0.5, 1)
    code, _, err = start("--config=a/config.yaml", "--output_dir=b")
    assert code == 0, err
    assert weights("a") == weights("b")
    assert figures("a") == figures("b")
    assert {**yaml.safe_load(Path("b/config.yaml").read_text()), "output_dir": "a"} == config


@pytest.mark.parametrize("flags", [[], ["--lora_r=2"]], ids=["full", "lora"])
def test_a_run_that_lost_its_last_steps_goes_on_like_one_that_did_not(flags: list[str], own: Path) -> None:  # noqa: F811
    flags = [*LENGTHS, *flags, "--checkpoint_every_n_steps=1", "--keep_checkpoints=9", "--output_dir=run"]
    flags += [flag.replace("max_steps=4", "max_steps=6") for flag in SMALL]
    code, _, err = start(*flags)
    assert code == 0, err
    name = "adapter_model.safetensors" if "--lora_r=2" in flags else "model.safetensors"
    whole = weights("run", name), figures("run")
    for step in (4, 5, 6):
        Path(f"run/checkpoints/step={step:08d}.ckpt").unlink()
    code, out, err = start("--config=run/config.yaml", "--resume=auto")
    assert code == 0, err
    assert "Continuing from run/checkpoints/step=00000003.ckpt" in out
    assert (weights("run", name), figures("run")) == whole


def test_a_dry_run_takes_an_iteration_and_writes_nothing(own: Path) -> None:  # noqa: F811
    before = sorted(path for path in own.rglob("*") if "__pycache__" not in str(path))
    code, out, err = start(*OWN, "--val_split=0.2", "--dry_run", *SMALL)
    assert code == 0, err
    assert "Dry run on cpu" in out
    assert sorted(path for path in own.rglob("*") if "__pycache__" not in str(path)) == before


NOWHERE = ["--model=./nowhere", *OWN[1:]]
MISTAKES = [
    (["--critic=sparse"], "--critic"),
    (["--critic=shared", "--critic_model=base"], "--critic_model=base is a model of its own, got --critic=shared"),
    ([*NOWHERE, "--value_coef=0"], "--value_coef must be above 0"),
    ([*NOWHERE, "--gae_lambda=2"], "--gae_lambda must lie between 0 and 1"),
    ([*NOWHERE, "--num_iterations=0"], "--num_iterations must be above 0"),
    ([*NOWHERE, "--kl_schedule=constant", "--kl_coef=0"], "ConstantKL needs a KL coef"),
    (["--model=./nowhere", *ASKED[1:], "--reward_model=./nobody"], "nobody"),
    (["--model=./nowhere", *ASKED[1:], "--reward_model=base"], "has no trained score"),
    ([*OWN, "--critic_model=./nobody"], "the folder './nobody' does not exist"),
    ([*OWN, "--critic=adapter"], "--critic=adapter needs an adapter .* add --lora_r=16"),
    *[
        ([*NOWHERE, f"--{theirs}=1"], f"unknown flag --{theirs} .*; did you mean --{ours}\\?")
        for theirs, ours in {
            **{"num_ppo_epochs": "num_iterations", "num_mini_batches": "steps_per_generation", "lam": "gae_lambda"},
            **{"cliprange": "clip_low", "cliprange_value": "value_clip", "vf_coef": "value_coef"},
            **{"whiten_rewards": "whiten_advantages", "response_length": "max_new_tokens", "lambd": "gae_lambda"},
            **{
                "reward_model_path": "reward_model",
                "critic_warmup": "critic_warmup_steps",
                "use_kl_loss": "kl_in_loss",
            },
        }.items()
    ],
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_no_traceback(flags: list[str], message: str, own: Path) -> None:  # noqa: F811
    given = " ".join(flags)
    code, _, err = start(*flags, "--output_dir=run", *(f for f in SMALL if f.split("=")[0] not in given))
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_built_in_job_learns_and_its_critic_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By accuracy on held-out prompts, asked by transformers' own generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from relax.tasks.grading import accuracy

    monkeypatch.chdir(tmp_path)
    code, out, err = start("--max_steps=120", "--logger=none", "--output_dir=run", "--seed=1")
    assert code == 0, err
    task = TASKS["sorting"]
    model, tokenizer = (cls.from_pretrained("run/model") for cls in (AutoModelForCausalLM, AutoTokenizer))
    right = accuracy(model, tokenizer, task.eval_rows(), task.grade)
    assert right > 0.9
    assert f"Accuracy after training: {right:.1%} of 500 held-out prompts" in out
    explained = [row["train/explained_variance"] for row in learned("run")]
    assert max(explained) > 0.4


@pytest.mark.slow
def test_the_built_in_job_works_without_a_flag_and_without_the_network(tmp_path: Path) -> None:
    """But for the number of steps, which is cut."""
    from test_privacy import SWITCHES
    from tiny_models import network_calls

    root = str(Path(run_rl.__file__).parent)
    program = f"import sys; sys.path.insert(0, {root!r}); import run_rl; run_rl.cli(['--max_steps=3'])"
    assert network_calls(program, tmp_path, without=SWITCHES) == []
    [folder] = (tmp_path / "runs").glob("rl-*")
    assert (folder / "model/model.safetensors").exists()
