"""How GRPOTrainer behaves: it learns, it stands still where nothing can be learned, dynamic sampling, settings."""

import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from grpo_run import STEPS, Steps, build, odd, policy, train
from torch import Tensor
from torch.utils.data import DataLoader

from relax.errors import UserError
from relax.lora import LoRASettings, add_lora
from relax.policy_gradient import without_variance
from relax.tasks.sorting import Sorting
from trainers import GRPOTrainer


def sevens(completion: str) -> float:
    """The share of one digit; high for who writes nothing else."""
    return completion.count("7") / 12


LEARNING: dict[str, Any] = {
    "rewards": [sevens], "optimizer": "adamw", "learning_rate": 3e-2, "precision": 32, "batch_size": 32,
    "steps_per_generation": 1, "num_iterations": 1, "max_steps": 20,
}  # fmt: skip


@pytest.mark.parametrize("preset", ["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"])
def test_every_preset_learns(preset: str) -> None:
    weak = {"kl_coef": 0.001} if preset == "rloo" else {}  # the preset's is for rewards that are larger than a KL
    steps, _ = train(preset=preset, **LEARNING, **weak)
    rewards = [figures["reward"] for figures in steps.figures]
    assert rewards[0] < 0.15
    assert sum(rewards[-3:]) / 3 > 0.5


def test_an_adapter_learns() -> None:
    steps, _ = train(add_lora(policy(), LoRASettings(r=8)), **LEARNING)
    assert steps.figures[-1]["reward"] > 3 * steps.figures[0]["reward"]


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
def test_it_learns_from_a_loader_of_prompts() -> None:
    steps, module = Steps(), build(**LEARNING | {"train_dataset": None})
    loader = DataLoader(Sorting().prompt_rows(8 * 20), batch_size=8, collate_fn=list)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    L.Trainer(max_epochs=1, log_every_n_steps=1, enable_checkpointing=False, callbacks=[steps], **options).fit(
        module, loader
    )
    assert len(steps.figures) == 20
    assert steps.figures[-1]["reward"] > 0.5


# Where nothing can be learned


class Switched:
    """A reward that says the same of all completions in some iterations, and what an optimizer has after each step."""

    def __init__(self, flat_iterations: set[int]) -> None:
        self.flat_iterations, self.calls = flat_iterations, 0

    def score(self, completions: list[str]) -> list[float]:
        self.calls += 1
        return [0.0 if self.calls - 1 in self.flat_iterations else odd(text) for text in completions]


class Moved(L.Callback):
    """Weights and momenta after every optimizer step."""

    def __init__(self) -> None:
        self.states: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.states):
            state = trainer.optimizers[0].state
            momenta = [value for p in pl_module.model.parameters() for value in state[p].values()]
            self.states.append([x.detach().clone() for x in (*pl_module.model.parameters(), *momenta)])


OWN: dict[str, Any] = {"steps_per_generation": 1, "num_iterations": 1}
ADAM: dict[str, Any] = {"optimizer": "adamw", "betas": (0.9, 0.99), "learning_rate": 1e-2, "weight_decay": 0.1}


@pytest.mark.parametrize("cut", [{}, {"micro_batch_size": 4, "gradient_clip_val": 1.0, "log_every_n_steps": 3}])
def test_an_iteration_without_variance_moves_nothing(cut: dict[str, Any]) -> None:
    """Neither by momentum nor by weight decay."""
    moved, reward = Moved(), Switched({1})
    steps, _ = train(rewards=[reward.score], callbacks=[moved], max_steps=3 * STEPS, **ADAM, **cut)
    assert all(figures["entropy"] > 0.5 for figures in steps.figures[2:])  # what is not computed is not logged as 0
    for step in range(1, 3 * STEPS):
        same = all(map(torch.equal, moved.states[step], moved.states[step - 1]))
        assert same == (STEPS <= step < 2 * STEPS), step


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_of_prompts_without_variance_moves_nothing(accumulate: int) -> None:
    """Of several that Lightning accumulates, none may have any."""
    moved, flat = Moved(), {2, 3} if accumulate == 2 else {1}
    module = build(train_dataset=None, rewards=[Switched(flat).score], **OWN, **ADAM)
    loader = DataLoader(Sorting().prompt_rows(48), batch_size=8, collate_fn=list)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_checkpointing": False, "accumulate_grad_batches": accumulate, "max_epochs": 1}
    L.Trainer(callbacks=[moved], **options).fit(module, loader)
    same = [all(map(torch.equal, x, y)) for x, y in zip(moved.states, moved.states[1:], strict=False)]
    assert same == ([True, False] if accumulate == 2 else [True, False, False, False, False])


def test_a_penalty_is_learned_from_without_variance() -> None:
    """The KL to a reference has a gradient of its own."""
    moved = Moved()
    train(rewards=[Switched(set(range(9))).score], callbacks=[moved], preset="grpo", **ADAM)
    assert not any(all(map(torch.equal, x, y)) for x, y in zip(moved.states, moved.states[1:], strict=False))


def test_completions_that_are_all_cut_off_and_masked_move_nothing() -> None:
    moved = Moved()
    settings: dict[str, Any] = {"mask_truncated": True, "max_new_tokens": 2, "min_new_tokens": 2}
    steps, trainer = train(callbacks=[moved], **settings, **ADAM)
    assert trainer.experience is not None
    assert trainer.experience.completions["truncated"].all()
    assert all(map(torch.equal, moved.states[0], moved.states[-1]))
    assert all(math.isfinite(figures["loss"]) for figures in steps.figures)


def test_one_is_told_when_nothing_can_be_learned_for_long() -> None:
    reward = Switched(set(range(20)))
    cycle: dict[str, Any] = {"steps_per_generation": 1, "num_iterations": 1, "max_steps": 11}
    with pytest.warns(UserWarning, match="nothing to learn for 10 iterations: every completion scores 0"):
        train(rewards=[reward.score], **cycle)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(rewards=[Switched(set(range(20)) - {5}).score], **cycle)


def test_nobody_is_told_so_where_fresh_prompts_bring_something() -> None:
    """What is asked first never does, and what takes its place always."""
    reward = Switched(set(range(0, 40, 2)))
    cycle: dict[str, Any] = {"steps_per_generation": 1, "num_iterations": 1, "max_steps": 11}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        steps, _ = train(rewards=[reward.score], **cycle, dynamic_sampling=True, max_sampling_rounds=2)
    assert reward.calls == 22
    assert all(gradient.any() for gradient in steps.gradients)


# Dynamic sampling


class Asked(L.Callback):
    """The numbers of the prompts that were asked, one list a rollout."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        generate = pl_module.engine.generate

        def noted(prompts: Any, **settings: Any) -> Any:
            self.rounds.append(list(settings["prompt_ids"]))
            return generate(prompts, **settings)

        pl_module.engine.generate = noted

    @property
    def numbers(self) -> list[int]:
        return [number for numbers in self.rounds for number in numbers]


PAIRS: dict[str, Any] = {"num_generations": 2, "dynamic_sampling": True, "max_steps": 3 * STEPS}
"""Every other group agrees."""


def test_groups_without_variance_are_replaced_by_fresh_prompts() -> None:
    asked = Asked()
    steps, _ = train(callbacks=[asked], **PAIRS)
    assert asked.numbers == list(range(len(asked.numbers)))  # the walk goes on, and leaves none out
    drawn = [round(steps.figures[i * STEPS]["prompts_asked"]) for i in range(3)]
    assert sum(drawn) == len(asked.numbers)
    for experience in steps.experiences:
        assert len(experience.prompts) == 16
        assert not without_variance(experience.completions["score"], experience.groups).any()
        assert experience.numbers == sorted(set(experience.numbers))
    for figures, count in zip(steps.figures[::STEPS], drawn, strict=True):
        assert 16 < count <= 4 * 16
        assert round(figures["groups_without_variance"] * count) <= count - 16
        assert 0 < figures["groups_without_variance"] < 1


def test_figures_are_those_of_all_that_was_asked() -> None:
    """A kept group is never all right or all wrong: its mean would say nothing of the policy."""
    sampled: list[float] = []

    def seldom(completion: str) -> float:
        sampled.append(float("7" in completion and "8" in completion))
        return sampled[-1]

    steps, trainer = train(rewards=[seldom], **PAIRS | {"max_steps": 1})
    assert steps.figures[0]["prompts_asked"] == len(sampled) / 2
    assert steps.figures[0]["reward"] == pytest.approx(sum(sampled) / len(sampled), rel=1e-6)
    assert trainer.experience is not None
    assert float(trainer.experience.completions["score"].mean()) > steps.figures[0]["reward"] > 0


def test_sampling_again_has_a_bound() -> None:
    """Then some groups are without variance; the iteration has its size."""
    asked = Asked()
    steps, _ = train(
        callbacks=[asked], rewards=[Switched(set(range(9))).score], **PAIRS | {"max_steps": STEPS},
        max_sampling_rounds=3,
    )  # fmt: skip
    assert [len(numbers) for numbers in asked.rounds] == [16, 16, 16]
    assert len(steps.experiences[0].prompts) == 16
    assert steps.figures[0]["groups_without_variance"] == 1
    assert steps.figures[0]["prompts_asked"] == 48
    assert not any(gradient.any() for gradient in steps.gradients)


def test_dynamic_sampling_asks_nothing_more_where_all_groups_vary() -> None:
    asked = Asked()
    scores = iter(range(10**6))
    steps, _ = train(
        callbacks=[asked], rewards=[lambda completion: float(next(scores))], dynamic_sampling=True, max_steps=STEPS
    )
    assert [len(numbers) for numbers in asked.rounds] == [8]
    assert steps.figures[0]["groups_without_variance"] == 0


# Settings


def test_parts_of_a_preset_can_be_changed() -> None:
    trainer = build(preset="gspo", ratio="token", clip_high=0.5, kl_coef=0.1, advantage="group_mean")
    assert trainer.objective.ratio == "token"
    assert (trainer.objective.clip.low, trainer.objective.clip.high) == (3e-4, 0.5)
    assert trainer.objective.aggregation == "sequence_mean"
    assert (trainer.kl_coef, trainer.advantage) == (0.1, "group_mean")
    assert trainer.reference is not None
    assert build(preset="grpo", kl_coef=0.0).reference is None


def test_a_run_without_reference_cannot_be_held_to_one() -> None:
    trainer = build()
    trainer.kl_coef = 0.0
    with pytest.raises(UserError, match="kl_coef=0.1 needs a reference model"):
        trainer.kl_coef = 0.1


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    first, again, other = (train(policy(), seed=seed, precision=32)[0] for seed in (1, 1, 2))
    assert all(map(torch.equal, first.gradients, again.gradients))
    assert torch.equal(first.experiences[0].ids, again.experiences[0].ids)
    assert first.experiences[0].ids.tolist() != other.experiences[0].ids.tolist()


def test_check_needs_neither_model_nor_data() -> None:
    GRPOTrainer.check(preset="grpo", num_generations=4, batch_size=8)
    with pytest.raises(UserError, match="--num_generations must be at least 2"):
        GRPOTrainer.check(num_generations=1)
