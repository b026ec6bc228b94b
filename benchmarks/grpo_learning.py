"""Learning curves of ReLax and of TRL's GRPOTrainer from the same start: do both learn the same, step by step?

    python benchmarks/grpo_learning.py --seeds 0 --steps 100 --json curves.json

Needs TRL for its curve (``pip install -e '.[bench]'``), which is left out without it. The task is the built-in one,
sorting digits; so is the policy, which solves half of it. 32 prompts x 16 completions a step, AdamW, DAPO's loss, no KL
penalty. The order of the prompts and the noise of sampling are each trainer's own. Every ten steps the policy answers
held-out prompts greedily, which is no part of the time. The JSON file holds the curve of every run, for pictures:
``measured.NAME[run].reward`` of each step and ``held_out``, a list of step, accuracy and CPU seconds so far.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import mean, median
from typing import Any

import torch
from side_by_side import (
    PACKAGES,
    Contender,
    Turns,
    benchmark_arguments,
    print_machine,
    print_table,
    write_json,
)

from relax.tasks.grading import accuracy
from relax.tasks.sorting import Sorting

TASK = Sorting()
SETTINGS: dict[str, Any] = {
    "batch_size": 512,
    "num_generations": 16,
    "max_new_tokens": 9,
    "learning_rate": 3e-4,
    "betas": (0.9, 0.95),
    "warmup_steps": 5,
    "gradient_clip_val": 1.0,
    "clip_low": 0.2,
    "clip_high": 0.28,
}
EVALUATE_EVERY = 10
SHOWN_STEPS = (10, 20, 40, 60, 80, 100, 140)

Curve = dict[str, Any]


class Recorder:
    """The reward of every step, and now and then held-out accuracy and the CPU seconds that training took so far."""

    def __init__(self, tokenizer: Any, steps: int) -> None:
        self.tokenizer, self.steps = tokenizer, steps
        self.rewards: list[float] = []
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def begin(self) -> None:
        """Training begins: everything is set up."""
        self.since = time.process_time()

    def scored(self, rewards: Sequence[float]) -> None:
        """A step's completions have been scored."""
        self.rewards.append(mean(rewards))

    def step_done(self, step: int, model: Any) -> None:
        """An optimizer step is complete."""
        if step % EVALUATE_EVERY and step != self.steps:
            return
        self.seconds += time.process_time() - self.since
        right = accuracy(model, self.tokenizer, TASK.eval_rows(), TASK.grade)
        self.points.append({"step": step, "cpu_seconds": self.seconds, "accuracy": right})
        self.since = time.process_time()

    @property
    def curve(self) -> Curve:
        return {"reward": self.rewards, "held_out": self.points}


def learn_relax(seed: int, steps: int) -> Curve:
    import lightning as L

    from trainers import GRPOTrainer

    model, tokenizer = policy()
    recorder = Recorder(tokenizer, steps)

    def reward(prompts: list[str], completions: list[str], truncated: list[bool]) -> list[float]:
        scores = TASK.score(prompts, completions, truncated)
        recorder.scored(scores)
        return scores

    class Progress(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            recorder.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            recorder.step_done(trainer.global_step, model)

    GRPOTrainer(
        model,
        tokenizer,
        train_dataset=TASK.prompt_rows(),
        rewards=[reward],
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[Progress()],
        schedule="constant",
        max_steps=steps,
        **SETTINGS,
    ).train()
    return recorder.curve


def learn_trl(seed: int, steps: int) -> Curve:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    model, tokenizer = policy()
    recorder = Recorder(tokenizer, steps)

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        truncated = [ids[-1] != tokenizer.eos_token_id for ids in completion_ids]
        scores = TASK.score(prompts, completions, truncated)
        recorder.scored(scores)
        return scores

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            recorder.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.step_done(state.global_step, model)

    with tempfile.TemporaryDirectory() as folder:
        trl.GRPOTrainer(
            model,
            reward_funcs=[reward],
            args=trl.GRPOConfig(output_dir=folder, seed=seed, max_steps=steps, **trl_settings()),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in TASK.prompt_rows()]),
            processing_class=tokenizer,
            callbacks=[Progress()],
        ).train()
    return recorder.curve


def trl_settings() -> dict[str, Any]:
    """``SETTINGS`` in TRL's names."""
    return {
        "per_device_train_batch_size": SETTINGS["batch_size"],
        "num_generations": SETTINGS["num_generations"],
        "max_completion_length": SETTINGS["max_new_tokens"],
        "learning_rate": SETTINGS["learning_rate"],
        "adam_beta1": SETTINGS["betas"][0],
        "adam_beta2": SETTINGS["betas"][1],
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": SETTINGS["warmup_steps"],
        "max_grad_norm": SETTINGS["gradient_clip_val"],
        "epsilon": SETTINGS["clip_low"],
        "epsilon_high": SETTINGS["clip_high"],
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": EVALUATE_EVERY,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def policy() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = TASK.policy_folder
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


LEARNERS: dict[str, Callable[[int, int], Curve]] = {"ReLax": learn_relax, "TRL": learn_trl}


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if options.contender:
        be(options)
    seeds, steps = (options.seeds[:1], 20) if options.quick else (options.seeds, options.steps)
    with_trl = find_spec("trl") is not None
    machine = print_machine(options.threads, (*PACKAGES, "trl") if with_trl else PACKAGES)
    curves: dict[str, list[Curve]] = {name: [] for name in LEARNERS if with_trl or name != "TRL"}
    for seed in seeds:
        for name in curves:
            contender = Contender(f"{name} {seed}", options.threads)
            curves[name].append(contender.measure(str(steps)))
            contender.stop()
            write_json(options.json, machine, curves)
    report(curves, steps)


def be(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    name, seed = options.contender.split()
    turns = Turns()
    turns.report(LEARNERS[name](int(seed), int(turns.wait())))
    turns.wait()


def report(curves: dict[str, list[Curve]], steps: int) -> None:
    shown = [step for step in SHOWN_STEPS if step <= steps]
    for title, of_run in (("reward, mean of the ten steps up to", reward_at), ("held-out accuracy after", accuracy_at)):
        rows = [
            [name, *(spread([of_run(run, step) for run in runs]) for step in shown)] for name, runs in curves.items()
        ]
        print_table([title, *map(str, shown)], rows)
    seconds = {name: median(run["held_out"][-1]["cpu_seconds"] for run in runs) for name, runs in curves.items()}
    rows = [[name, f"{1000 * cpu / steps:,.0f}"] for name, cpu in seconds.items()]
    print_table(["", "CPU ms a step"], rows)


def reward_at(run: Curve, step: int) -> float:
    return float(mean(run["reward"][step - 10 : step]))


def accuracy_at(run: Curve, step: int) -> float:
    return next(float(point["accuracy"]) for point in run["held_out"] if point["step"] == step)


def spread(values: Sequence[float]) -> str:
    """The mean over seeds, and the lowest and highest."""
    return f"{mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()
