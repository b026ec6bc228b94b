"""The whole of RLHF on a CPU: demonstrations -> policy -> preferences -> reward model -> PPO, against the truth.

The task is the built-in one, sorting digits. It needs no download; ``python examples/rlhf_pipeline.py`` takes some
minutes, ``--quick`` some seconds, which are enough to see every part at work and for none to learn much.

The policy that PPO improves never sees the truth: it is scored by a reward model, which was trained on the choices of a
judge who errs. But as sorting can be checked, `Evaluate` shows on held-out prompts how right the answers really are,
and so how far the reward model is worth following. PPO runs twice, held to where it started more and less tightly.
"""

import argparse
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from callbacks import Evaluate, SampleLog, default_callbacks
from relax import run_folder
from relax.data import split_rows
from relax.models import load_model, load_tokenizer
from relax.quiet import quiet_libraries
from relax.rewards import build_rewards
from relax.rollout import PolicyEngine, Sampling
from relax.rollout.texts import completion_text
from relax.sequence_classifier import load_classifier
from relax.tasks import TASKS
from trainers import RewardTrainer, RLTrainer, SFTTrainer

TASK = TASKS["sorting"]
MAX_NEW_TOKENS = 9  # eight digits and the end of text
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    demonstrations: int = 20_000
    sft_steps: int = 1000
    asked_prompts: int = 6000
    reward_epochs: int = 3
    reward_val_every_n_steps: int = 20
    ppo_steps: int = 160
    held_out_prompts: int = 500


QUICK = Sizes(
    500, sft_steps=40, asked_prompts=200, reward_epochs=1, reward_val_every_n_steps=1, ppo_steps=8, held_out_prompts=50
)
KL_COEFS = {"loose": 0.05, "tight": 0.3}  # nats from the start cost so much of the score
COMMON: dict[str, Any] = {
    "gradient_clip_val": 1.0,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "betas": (0.9, 0.95),
}


def main() -> None:
    """All of it, one after the other; each part leaves a folder that the next one loads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the runs; default: a new one in runs/")
    parser.add_argument("--picture", type=Path, help="draw the figures into this file, too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args()
    quiet_libraries()
    folder, sizes = options.folder or run_folder.fresh("rlhf"), QUICK if options.quick else Sizes()

    policy = imitate(folder / "sft", sizes)
    pairs = collect_preferences(policy, sizes)
    judge = learn_to_judge(policy, pairs, folder / "reward", sizes)
    for name, kl_coef in KL_COEFS.items():
        improve(policy, judge, folder / name, sizes, kl_coef)

    report(folder)
    if options.picture is not None:
        draw(folder, options.picture)


# 1. Demonstrations -> policy


def imitate(folder: Path, sizes: Sizes) -> Path:
    """Supervised fine-tuning: the teachers are lazy, so the policy gets about half of the prompts right."""
    trainer = SFTTrainer(
        TASK.build_model(),
        TASK.build_tokenizer(),
        train_dataset=TASK.train_rows(sizes.demonstrations),
        learning_rate=5e-3,
        warmup_steps=20,
        batch_size=128,
        max_steps=sizes.sft_steps,
        output_dir=folder,
        callbacks=watchers(folder),
        **COMMON,
    )
    trainer.train()
    return run_folder.export_folder(folder)


# 2. Policy -> preferences


def collect_preferences(policy: Path, sizes: Sizes) -> list[Row]:
    """Two answers of the policy to each prompt, and which of them the judge prefers."""
    model, tokenizer = load_model(str(policy)), load_tokenizer(str(policy))
    prompts = [row["prompt"] for row in TASK.prompt_rows(sizes.asked_prompts, seed=1)]
    rng = random.Random(0)
    pairs = []
    for prompt, answers in zip(prompts, sampled_answers(model, tokenizer, prompts), strict=True):
        different = sorted(set(answers) - {""})
        if len(different) > 1:  # of two that are the same nobody can prefer one
            first, second = rng.sample(different, 2)
            prefers_first = rng.random() < sigmoid(merit(prompt, first) - merit(prompt, second))
            chosen, rejected = (first, second) if prefers_first else (second, first)
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    errors = sum(merit(pair["prompt"], pair["chosen"]) < merit(pair["prompt"], pair["rejected"]) for pair in pairs)
    print(
        f"{len(prompts)} prompts, {len(pairs)} pairs of different answers; the judge erred in {errors / len(pairs):.1%}"
    )
    return pairs


def sampled_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], num_samples: int = 4
) -> Iterable[list[str]]:
    """What the policy writes at temperature 1, ``num_samples`` answers a prompt."""
    end = tokenizer.eos_token_id
    rollouts = PolicyEngine(model).generate(
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        num_samples=num_samples,
        sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS, stop_ids=(end,)),
        seed=0,
    )
    texts = [completion_text(tokenizer, ids, stop_ids=(end,)) for ids in rollouts.completions()]
    return (texts[start : start + num_samples] for start in range(0, len(texts), num_samples))


def merit(prompt: str, answer: str) -> float:
    """What the judge looks at: digits left out or made up count heavily, then neighbours in the wrong order."""
    given, written = sorted(prompt.removesuffix(">")), sorted(answer)
    missing = sum(abs(given.count(digit) - written.count(digit)) for digit in set(given) | set(written))
    disorder = sum(left > right for left, right in pairwise(answer))
    return -2.0 * missing - 1.5 * disorder


def sigmoid(x: float) -> float:
    """How likely the judge is to prefer the first of two, from the difference in merit (Bradley and Terry)."""
    return 1 / (1 + math.exp(-x))


# 3. Preferences -> reward model


def learn_to_judge(policy: Path, pairs: list[Row], folder: Path, sizes: Sizes) -> Path:
    """A reward model that starts from the policy, with a score in place of the next token."""
    train, held_out = split_rows(pairs, 0.1, seed=0)
    trainer = RewardTrainer(
        load_classifier(str(policy)),
        load_tokenizer(str(policy)),
        train_dataset=train,
        val_dataset=held_out,
        learning_rate=1e-3,
        warmup_ratio=0.05,
        batch_size=64,  # pairs
        max_epochs=sizes.reward_epochs,
        centering_coef=0.01,
        val_every_n_steps=sizes.reward_val_every_n_steps,
        output_dir=folder,
        callbacks=watchers(folder),
        log_every_n_steps=1,
        **COMMON,
    )
    trainer.train()
    return run_folder.export_folder(folder)


# 4. Reward model -> better policy


def improve(policy: Path, judge: Path, folder: Path, sizes: Sizes, kl_coef: float) -> None:
    """PPO by the reward model's scores; what is right has no weight and is only watched."""
    rewards = build_rewards([f"model={judge}", (right, 0.0)])
    trainer = RLTrainer(
        load_model(str(policy)),
        load_tokenizer(str(policy)),
        train_dataset=TASK.prompt_rows(),
        rewards=rewards,
        normalize_rewards=True,  # so that kl_coef and value_clip need not know how large scores are
        missing_eos_penalty=1.0,  # the reward model cannot see whether a text has ended
        kl_coef=kl_coef,
        learning_rate=2e-4,
        critic_learning_rate=1e-3,
        schedule="constant",
        warmup_steps=5,
        batch_size=128,  # completions of an optimizer step
        steps_per_generation=2,
        num_iterations=4,  # so an iteration is 256 completions and 8 steps
        max_new_tokens=MAX_NEW_TOKENS,
        max_steps=sizes.ppo_steps,
        output_dir=folder,
        callbacks=[
            Evaluate(TASK.eval_rows(sizes.held_out_prompts), rewards, every_n_steps=8, correct="right"),
            SampleLog(folder, every_n_steps=80),
            *watchers(folder),
        ],
        log_every_n_steps=1,
        **COMMON,
    )
    trainer.train()


def right(completion: str, answer: str, truncated: bool) -> float:
    """The truth; ``answer`` is a column of the rows."""
    return float(completion == answer and not truncated)


def watchers(folder: Path) -> list[Callback]:
    """Checkpoints, ``metrics.jsonl``, and at the end ``model/``, a Hugging Face folder."""
    return default_callbacks(folder, progress=False)


# What came of it


def curve(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Optimizer steps, and a logged figure's value at each."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [(int(row["step"]), float(row[name])) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def report(folder: Path) -> None:
    """Print the figures that matter."""
    _, agreement = curve(folder / "reward", "val/accuracy")
    print(f"the reward model chooses as the judge did in {agreement[-1]:.1%} of held-out pairs")
    for name, kl_coef in KL_COEFS.items():
        steps, truth = curve(folder / name, "val/accuracy")
        _, score = curve(folder / name, "val/reward")
        best = truth.index(max(truth))
        print(
            f"kl_coef={kl_coef}: right {truth[0]:.1%} at first, {truth[best]:.1%} after {steps[best]} steps, "
            f"{truth[-1]:.1%} at last; score {score[0]:.2f}, {score[best]:.2f}, {score[-1]:.2f}"
        )
    print(f"everything lies in {folder}")


PANELS = {
    "val/accuracy": "the truth: right answers to held-out prompts",
    "val/reward": "what the reward model says of them",
    "train/sequence_kl": "nats from the policy at the start",
    "train/explained_variance_mc": "what the critic foresees of the rewards",
}


def draw(folder: Path, picture: Path) -> None:
    """The curves as they were logged, nothing smoothed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for run, kl_coef in KL_COEFS.items():
            axes.plot(*curve(folder / run, name), linewidth=0.9, label=f"kl_coef={kl_coef}")
        axes.set_title(f"{title}\n{name}", fontsize=10)
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    print(picture)


if __name__ == "__main__":
    main()
