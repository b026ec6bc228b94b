"""Learning curves of ReLax's PPO and of a loop written by hand, from the same start: is ours no worse, step by step?

    python benchmarks/ppo_learning.py --json curves.json --out docs/pictures/ppo_learning.png

The task is the built-in one, sorting digits; so is the policy, which solves half of it. An update is 256 prompts with
one completion each, four epochs of two minibatches, a critic that starts from the policy, KL penalty 0.01 in the
rewards. Settings are equal; the order of the prompts and the noise of sampling are each one's own. Every ten updates
the policy answers held-out prompts greedily, which is no part of the time. The JSON file is as that of
``grpo_learning.py``, with updates in place of steps, and with ``explained_variance`` of each update: how much of the
plain sums of rewards the critic had foreseen (ours is ``train/explained_variance_mc``). The picture shows each run as
it is, nothing smoothed but where a title says so.
"""

import argparse
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import torch
from grpo_learning import TASK, Curve, Recorder, accuracy_at, policy, reward_at, spread
from matplotlib.figure import Figure
from side_by_side import (
    Contender,
    Turns,
    benchmark_arguments,
    print_machine,
    print_table,
    write_json,
)

PROMPTS, MINIBATCHES, EPOCHS = 256, 2, 4
SETTINGS: dict[str, Any] = {
    "batch_size": PROMPTS // MINIBATCHES,
    "num_iterations": EPOCHS,
    "max_new_tokens": 9,
    "learning_rate": 2e-4,
    "critic_learning_rate": 1e-3,
    "betas": (0.9, 0.95),
    "gradient_clip_val": 1.0,
    "kl_coef": 0.01,
}
"""The rest are defaults of both: clip and value clip 0.2, value loss times 0.1, gamma 1, lambda 0.95."""
SHOWN_UPDATES = (10, 20, 30, 40, 50, 60, 80, 100)
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by the colour-blind, too
SMOOTHED = 5

Critic = Literal["separate", "shared"]


def learn_relax(seed: int, updates: int, critic: Critic = "separate") -> Curve:
    import lightning as L

    from trainers import RLTrainer

    model, tokenizer = policy()
    recorder = Recorder(tokenizer, updates)
    explained: list[float] = []
    steps = EPOCHS * MINIBATCHES

    def reward(prompts: list[str], completions: list[str], truncated: list[bool]) -> list[float]:
        scores = TASK.score(prompts, completions, truncated)
        recorder.scored(scores)
        return scores

    class Progress(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            recorder.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step % steps == 0:
                explained.append(module.sampling_figures["explained_variance_mc"])
                recorder.step_done(trainer.global_step // steps, model)

    RLTrainer(
        model,
        tokenizer,
        train_dataset=TASK.prompt_rows(),
        rewards=[reward],
        critic=critic,
        num_generations=1,
        steps_per_generation=MINIBATCHES,
        schedule="constant",
        seed=seed,
        max_steps=updates * steps,
        log_every_n_steps=steps,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[Progress()],
        **SETTINGS,
    ).train()
    return recorder.curve | {"explained_variance": explained}


def learn_shared(seed: int, updates: int) -> Curve:
    return learn_relax(seed, updates, critic="shared")


def learn_by_hand(seed: int, updates: int) -> Curve:
    from ppo_by_hand import PPO, Rollout, Settings

    model, tokenizer = policy()
    recorder = Recorder(tokenizer, updates)
    explained: list[float] = []
    end = tokenizer.eos_token_id
    batches = prompt_batches(seed)

    def reward(rollout: Rollout) -> torch.Tensor:
        answers = [ids[kept].tolist() for ids, kept in zip(rollout.completions, rollout.kept, strict=True)]
        truncated = [ids[-1] != end for ids in answers]
        texts = [tokenizer.decode([token for token in ids if token != end]) for ids in answers]
        scores = TASK.score(asked, texts, truncated)
        recorder.scored(scores)
        return torch.tensor(scores)

    settings = Settings(**SETTINGS, stop_ids=[end], pad_id=tokenizer.pad_token_id, micro_batch_size=PROMPTS)
    ppo = PPO(model, reward, settings, seed=seed)
    recorder.begin()
    for number in range(updates):
        asked = next(batches)
        ppo.update(ppo.score(ppo.generate(tokenizer(asked)["input_ids"])))
        explained.append(ppo.explained_variance)
        recorder.step_done(number + 1, model)
    return recorder.curve | {"explained_variance": explained}


def prompt_batches(seed: int) -> Iterator[list[str]]:
    """Endless, each epoch in another order."""
    prompts, rng = [row["prompt"] for row in TASK.prompt_rows()], random.Random(seed)
    while True:
        rng.shuffle(prompts)
        for start in range(0, len(prompts) - PROMPTS + 1, PROMPTS):
            yield prompts[start : start + PROMPTS]


LEARNERS: dict[str, Callable[[int, int], Curve]] = {
    "ReLax": learn_relax,
    "ReLax, critic=shared": learn_shared,
    "hand-written": learn_by_hand,
}


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=[*LEARNERS], choices=LEARNERS, help="these learners")
    parser.add_argument("--out", type=Path, help="draw a picture into this file")
    options = parser.parse_args()
    if options.contender:
        be(options)
    seeds, updates = (options.seeds[:1], 20) if options.quick else (options.seeds, options.updates)
    machine = print_machine(options.threads)
    curves: dict[str, list[Curve]] = {name: [] for name in options.only}
    for seed in seeds:
        for name in curves:
            contender = Contender(f"{name} {seed}", options.threads)
            curves[name].append(contender.measure(str(updates)))
            contender.stop()
            write_json(options.json, machine, curves)
    report(curves, updates)
    if options.out:
        draw(curves).savefig(options.out, dpi=110)


def be(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    name, seed = options.contender.rsplit(" ", 1)
    turns = Turns()
    turns.report(LEARNERS[name](int(seed), int(turns.wait())))
    turns.wait()


def report(curves: dict[str, list[Curve]], updates: int) -> None:
    shown = [update for update in SHOWN_UPDATES if update <= updates]
    figures = {
        "reward, mean of the ten updates to": reward_at,
        "held-out accuracy after": accuracy_at,
        "explained variance, mean of the ten updates to": explained_at,
    }
    for title, of_run in figures.items():
        rows = [
            [name, *(spread([of_run(run, update) for run in runs]) for update in shown)]
            for name, runs in curves.items()
        ]
        print_table([title, *map(str, shown)], rows)
    seconds = {name: median(run["held_out"][-1]["cpu_seconds"] for run in runs) for name, runs in curves.items()}
    print_table(["", "CPU ms an update"], [[name, f"{1000 * cpu / updates:,.0f}"] for name, cpu in seconds.items()])


def explained_at(run: Curve, update: int) -> float:
    return float(mean(run["explained_variance"][update - 10 : update]))


def draw(curves: dict[str, list[Curve]]) -> Figure:
    """Every run as a thin line, learners by colour."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for (name, runs), colour in zip(curves.items(), COLOURS, strict=False):
        for number, run in enumerate(runs):
            style = {"label": name if number == 0 else None, "color": colour, "linewidth": 0.9}
            points = run["held_out"]
            accuracies = [point["accuracy"] for point in points]
            panels[1].plot([point["step"] for point in points], accuracies, marker="o", markersize=3, **style)
            for axes, values in ((panels[0], run["reward"]), (panels[2], run["explained_variance"])):
                axes.plot(range(1, len(values) + 1), smoothed(values), **style)
    panels[0].set_title(f"mean reward of the sampled completions\nmean of up to {SMOOTHED} updates", fontsize=10)
    panels[1].set_title("greedy accuracy on held-out prompts\n", fontsize=10)
    panels[2].set_title(f"explained variance of the critic\nmean of up to {SMOOTHED} updates", fontsize=10)
    for axes in panels:
        axes.set_xlabel("updates (256 completions, 8 optimizer steps each)", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=9)
    return figure


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and up to four before it."""
    return [mean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


if __name__ == "__main__":
    main()
