"""How RLTrainer behaves: it learns, what it logs, which updates it makes, what it exports, what it keeps in memory."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from freshness import Freshness
from grpo_run import policy
from peft import PeftModel
from ppo_run import LORA, STEPS, adapted, build, train
from test_on_policy import Order
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from relax.critic import SeparateCritic
from relax.lora import LoRASettings, add_lora
from trainers import RLTrainer, estimation, iteration, rl_trainer

pytestmark = pytest.mark.filterwarnings("ignore:--kl_coef pulls towards the base model")
CRITICS = ["separate", "shared", "adapter"]
ADAM: dict[str, Any] = {"optimizer": "adamw", "betas": (0.9, 0.99), "learning_rate": 1e-2, "weight_decay": 0.1}


def model_for(critic: str) -> Any:
    return adapted() if critic == "adapter" else policy()


def sevens(completion: str) -> float:
    """The share of one digit; high for who writes nothing else."""
    return completion.count("7") / 12


@pytest.mark.parametrize("critic", CRITICS)
def test_it_learns_with_every_critic(critic: str) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "optimizer": "adamw", "precision": 32, "kl_coef": 0.001}
    settings |= {"batch_size": 32, "steps_per_generation": 1, "num_iterations": 1, "max_steps": 25}
    model = add_lora(policy(), LoRASettings(r=8)) if critic == "adapter" else policy()
    steps, _ = train(model, critic=critic, rewards=[sevens], **settings)
    rewards = [figures["reward"] for figures in steps.figures]
    assert rewards[0] < 0.15
    assert sum(rewards[-3:]) / 3 > 0.4


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("settings", [{}, {"steps_per_generation": 1, "micro_batch_size": 4, "critic_warmup_steps": 1}])
def test_rollouts_come_from_the_latest_weights(critic: str, settings: dict[str, Any]) -> None:
    seen = Freshness()
    iteration = 2 * settings.get("steps_per_generation", 2)
    train(model_for(critic), critic=critic, callbacks=[seen], precision=32, max_steps=3 * iteration, **settings)
    assert seen.checked == [0, iteration, 2 * iteration]
    assert len({weights for _, weights in seen.engine.calls}) == 3


def test_the_order_of_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order()
    trainer = build(callbacks=[order], micro_batch_size=6, steps_per_generation=1, max_steps=4)
    models = (iteration.generate, iteration.score, iteration.recall, iteration.appraise)
    for part in (*models, estimation.shape, estimation.estimate):
        monkeypatch.setattr(rl_trainer, part.__name__, order.named(part.__name__, part))
    monkeypatch.setattr(trainer, "compute_loss", order.named("compute_loss", trainer.compute_loss))
    trainer.train()
    micro_batch = ["micro-batch", "compute_loss"]
    step = [*micro_batch, *micro_batch, "step"]
    experience = ["generate", "score", "recall", "appraise", "shape", "estimate"]
    once = ["iteration", *experience, *step, *step, "end"]
    assert order.events == ["start", *once, *once]


# What is logged

ALWAYS = {
    *("loss", "policy_loss", "value_loss", "value_clip", "explained_variance", "explained_variance_mc"),
    *("value", "return", "advantage_mean", "advantage_std", "objective_without_kl", "epochs_done", "entropy"),
    *("learning_rate", "critic_learning_rate", "grad_norm", "critic_grad_norm", "kl_coef", "old_kl"),
    *("clip_low", "clip_high", "ratio_min", "ratio_max"),
    *("reward", "reward_std", "reward_graded", "reward_failures", "truncated", "completion_tokens"),
    *("longest_completion", "seconds_rollout", "seconds_scoring", "seconds_recall", "seconds_appraisal"),
    *("seconds_update", "update_tokens_per_second"),
}
WITH_REFERENCE = {"kl_reward", "objective_with_kl", "sequence_kl"}


@pytest.mark.parametrize("kl_coef", [0.05, 0.0])
def test_what_is_logged_at_every_step(kl_coef: float) -> None:
    steps, _ = train(kl_coef=kl_coef, max_steps=STEPS + 1)
    for figures in steps.figures:
        assert figures.keys() >= ALWAYS
        assert (figures.keys() >= WITH_REFERENCE) == (kl_coef > 0)
        assert bool(WITH_REFERENCE & figures.keys()) == (kl_coef > 0)
        assert all(math.isfinite(value) for value in figures.values())
    assert [figures["epochs_done"] for figures in steps.figures] == [0.5, 1, 1.5, 2, 0.5]


def test_figures_of_what_is_not_computed_are_not_logged_as_0() -> None:
    """In the warm-up nothing is known of the policy's loss, in a halted iteration of neither."""
    # Lightning's metrics keep what was logged before: only the first steps tell what a step logs.
    logged = Logged()
    train(callbacks=[logged], critic_warmup_steps=2, target_kl=1e-9, max_steps=2 * STEPS)
    warm, moved, halted = logged.names[0], logged.names[2], logged.names[STEPS + 2]
    assert "value_loss" in warm
    assert not warm & {"policy_loss", "entropy", "ratio_min"}
    assert {"policy_loss", "value_loss", "entropy", "ratio_min"} <= moved
    assert not halted & {"policy_loss", "value_loss", "value_clip", "entropy", "ratio_min"}
    assert {"reward", "explained_variance", "epochs_done", "grad_norm"} <= halted


class Logged(L.Callback):
    """The names of what each optimizer step logs."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: RLTrainer) -> None:
        log_dict = pl_module.log_dict

        def noted(figures: Any, *arguments: Any, **options: Any) -> None:
            self.names.append({name.removeprefix("train/") for name in figures})
            log_dict(figures, *arguments, **options)

        pl_module.log_dict = noted  # type: ignore[method-assign]


# Which updates are made


class Moved(L.Callback):
    """Weights and momenta of policy and critic after every optimizer step."""

    def __init__(self) -> None:
        self.policy: list[list[Tensor]] = []
        self.critic: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.policy):
            state = trainer.optimizers[0].state
            for parts, seen in (
                (pl_module.policy_parameters(), self.policy),
                (pl_module.critic.learned(), self.critic),
            ):
                momenta = [value for p in parts for value in state[p].values()] if state else []
                seen.append([x.detach().clone() for x in (*parts, *momenta)])


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("clipping", [None, 0.1])
def test_a_halted_iteration_moves_nothing(critic: str, clipping: float | None) -> None:
    """Neither by momentum nor by weight decay, from the update on that would have led too far; momenta rest, too."""
    moved = Moved()
    settings: dict[str, Any] = {"target_kl": 1e-6, "max_steps": 3 * STEPS, "gradient_clip_val": clipping}
    steps, trainer = train(model_for(critic), critic=critic, callbacks=[moved], micro_batch_size=4, **settings, **ADAM)
    for step in range(1, 3 * STEPS):
        for part in (moved.policy, moved.critic):
            assert same(part[step - 1], part[step]) == (step % STEPS != 0), step
        assert steps.figures[step]["epochs_done"] == 0.5
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    if frozen:
        assert same(frozen, [p for p in model_for(critic).double().parameters() if not p.requires_grad])


@pytest.mark.parametrize("critic", CRITICS)
def test_in_the_warm_up_the_policy_stays_bit_for_bit(critic: str) -> None:
    """It has no momentum either when its first update comes: that is Adam's first."""
    moved, warm_up = Moved(), STEPS + 1
    settings: dict[str, Any] = {"critic_warmup_steps": warm_up, "max_steps": warm_up + 1, "gradient_clip_val": 1.0}
    steps, trainer = train(model_for(critic), critic=critic, callbacks=[moved], **settings, **ADAM)
    untouched = build(model_for(critic), critic=critic).policy_parameters()
    for step in range(warm_up):
        assert same(moved.policy[step], [p.double() for p in untouched])
        assert steps.figures[step]["grad_norm"] == 0 < steps.figures[step]["critic_grad_norm"]
    assert not any(map(torch.equal, moved.policy[-1], untouched))
    state = trainer.trainer.optimizers[0].state
    assert {float(state[p]["step"]) for p in trainer.policy_parameters()} == {1}
    assert {float(state[p]["step"]) for p in trainer.critic.learned()} == {warm_up + 1}


def test_rates_of_policy_and_critic_follow_one_schedule() -> None:
    settings = {"learning_rate": 0.02, "critic_learning_rate": 0.4, "schedule": "linear", "warmup_steps": 2}
    steps, _ = train(max_steps=2 * STEPS, **settings)
    for figures in steps.figures:
        assert figures["critic_learning_rate"] == pytest.approx(20 * figures["learning_rate"])
    assert steps.figures[2]["learning_rate"] == pytest.approx(0.02)
    assert steps.figures[-1]["learning_rate"] < 0.01


@pytest.mark.parametrize("critic", CRITICS)
def test_the_same_seed_gives_the_same_run(critic: str) -> None:
    first, again = (train(model_for(critic), critic=critic, precision=32)[0] for _ in range(2))
    for one, other in zip(first.gradients, again.gradients, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_critic_is_probed_in_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some attention kernels take half precision only."""
    mixed: list[bool] = []
    monkeypatch.setattr(SeparateCritic, "prepare", lambda *_, **__: mixed.append(torch.is_autocast_enabled("cpu")))
    train(precision="bf16-mixed", max_steps=1)
    assert mixed == [True]


# What is written and what is kept


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval().float()(torch.tensor([[5, 6, 7, 8]])).logits
    return found


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_nothing_of_the_critic_is_exported(critic: str, tmp_path: Path) -> None:
    _, trainer = train(critic=critic, precision=32, output_dir=tmp_path / "run")
    trainer.export(tmp_path / "model")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), logits(trainer.model))


def test_an_exported_adapter_is_the_policys_alone(tmp_path: Path) -> None:
    _, trainer = train(adapted(), precision=32, output_dir=tmp_path / "run", merge_adapter=True)
    trainer.export(tmp_path / "model")
    assert not list((tmp_path / "model").rglob("*critic*"))
    loaded = PeftModel.from_pretrained(policy(), str(tmp_path / "model"))
    assert [*loaded.peft_config] == ["default"]
    torch.testing.assert_close(logits(loaded), logits(trainer.model))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model/merged")
    torch.testing.assert_close(logits(merged), logits(trainer.model))


def kept(trainer: RLTrainer) -> int:
    """Bytes of all tensors that a trainer holds: policy, critic, reference."""
    models = [trainer.model, trainer.critic, *([trainer.reference] if trainer.reference else [])]
    tensors = {t.data_ptr(): t.nbytes for model in models for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def test_under_an_adapter_there_is_no_second_model() -> None:
    """Neither for the critic nor for the reference."""
    plain = add_lora(policy(), LORA)
    alone = sum(p.nbytes for p in plain.parameters())
    adapter = sum(p.nbytes for p in plain.parameters() if p.requires_grad)
    trainer = build(plain)
    assert trainer.reference is None
    assert trainer.compares
    head = 4 * (16 + 1)
    assert kept(trainer) - alone <= adapter + head + 200  # and the buffers of rotary positions


@pytest.mark.parametrize(("critic", "kl_coef", "models"), [
    ("shared", 0.0, 1), ("shared", 0.05, 2), ("separate", 0.0, 2), ("separate", 0.05, 3),
])  # fmt: skip
def test_models_in_memory(critic: str, kl_coef: float, models: int) -> None:
    """A reference only where there is a penalty; a separate critic lacks the head over the vocabulary."""
    trainer = build(critic=critic, kl_coef=kl_coef)
    assert (trainer.reference is not None) == (kl_coef > 0)
    whole = sum(p.nbytes for p in policy().parameters())
    assert (models - 0.2) * whole < kept(trainer) < (models + 0.05) * whole


def test_a_dry_run_sees_policy_and_critic_learn() -> None:
    """Also where the run begins with the critic alone, which takes less memory."""
    trainer = build(critic_warmup_steps=100, max_steps=200)
    before = [p.clone() for p in trainer.model.parameters()]
    assert math.isfinite(trainer.dry_run().loss)
    assert not any(map(torch.equal, before, trainer.model.parameters()))


def test_gradient_checkpointing_is_for_the_critic_too() -> None:
    trainer = build(gradient_checkpointing=True)
    inner = [trainer.model.model, trainer.critic.body]
    assert all(model.is_gradient_checkpointing for model in inner)
