"""What a user can get wrong with PPO, and policies, critics and rewards that misbehave: one line, or right numbers."""

import math
import warnings
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from conftest import build_llama
from test_grpo_bad_input import DATA_REFUSED, EOS, FAULTS, ROWS, SETTINGS, Silence, Untouchable, always
from test_grpo_bad_input import build as build_on_policy
from torch import nn

from callbacks import AdaptiveKL, NaNGuard
from relax.errors import NonFiniteLoss, TrainingStopped, UserError
from relax.lora import LoRASettings, add_lora
from relax.sequence_classifier import classifier_of
from trainers import RLTrainer

CRITICS = ["separate", "shared", "adapter"]
build = partial(build_on_policy, kind=RLTrainer, num_generations=1)


def adapted() -> Any:
    return add_lora(build_llama(), LoRASettings(r=2))


def model_for(critic: str) -> Any:
    return adapted() if critic == "adapter" else build_llama()


SETTINGS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"critic": "adaptor"}, "--critic must be one of adapter, separate, shared, got adaptor; did you mean adapter?"),
    ({"critic_learning_rate": 0.0}, "--critic_learning_rate must be above 0, got 0.0"),
    ({"critic_warmup_steps": -1}, "--critic_warmup_steps must lie between 0 and .*, got -1"),
    ({"value_clip": 0.0}, "--value_clip must be above 0, got 0.0"),
    ({"value_coef": 0.0}, "--value_coef must be above 0, got 0"),
    ({"value_coef": -0.1}, "--value_coef must (be above|lie between) 0.*, got -0.1"),
    ({"gamma": 1.1}, "--gamma must lie between 0 and 1, got 1.1"),
    ({"gae_lambda": -0.5}, "--gae_lambda must lie between 0 and 1, got -0.5"),
    ({"gamma": math.nan}, "--gamma must lie between 0 and 1, got nan"),
    ({"missing_eos_penalty": -1.0}, "--missing_eos_penalty must lie between 0 and inf, got -1.0"),
    ({"reward_clip": 0.0}, "--reward_clip must be above 0, got 0.0"),
    ({"target_kl": 0.0}, "--target_kl must be above 0, got 0.0"),
    ({"target_kl": math.inf}, "--target_kl must be above 0, got inf"),
    ({"kl_coef": -0.1}, "--kl_coef must lie between 0 and 1000, got -0.1"),
    ({"kl_estimator": "k4"}, "--kl_estimator must be one of k1, k2, k3, got k4"),
    ({"clip_low": 1.5}, "--clip_low must lie between 0 and 1, got 1.5"),
    ({"ratio_max": 0.5}, "--ratio_max must .*, got 0.5"),
    ({"entropy_coef": -1.0}, "--entropy_coef must .*, got -1.0"),
    ({"aggregation": "mean"}, "--aggregation must be one of fixed_length_mean, sequence_mean, token_mean, got mean"),
    ({"num_iterations": 0}, "--num_iterations must be above 0, got 0"),
    ({"cliprange_value": 0.2}, "unknown argument cliprange_value; did you mean value_clip?"),
    ({"vf_coef": 0.2}, "unknown argument vf_coef; did you mean value_coef?"),
    ({"num_ppo_epochs": 2}, "unknown argument num_ppo_epochs; did you mean num_iterations?"),
    ({"lam": 0.9}, "unknown argument lam; did you mean gae_lambda?"),
    ({"dynamic_sampling": True}, "unknown argument dynamic_sampling"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS_REFUSED, ids=[str(s) for s, _ in SETTINGS_REFUSED])
def test_settings_are_refused_before_the_data_are_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        build(rows=Untouchable(), **settings)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=message):  # as the command line asks, before it loads anything
        RLTrainer.check(**SETTINGS | {"num_generations": 1} | settings)


def classifier(**changes: Any) -> Any:
    return classifier_of(build_llama(**changes))


def with_labels(labels: int) -> Any:
    model = classifier()
    model.config.num_labels, model.score = labels, nn.Linear(16, labels, bias=False)
    return model


CRITICS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "adapter without one": ({"critic": "adapter"}, "--critic=adapter needs an adapter beside it; add --lora_r=16"),
    "model, shared": ({"critic": "shared", "critic_model": build_llama()}, "--critic_model .*--critic=shared"),
    "model, adapter": (
        {"model": adapted(), "critic": "adapter", "critic_model": build_llama()},
        "--critic_model .*--critic=adapter",
    ),
    "fewer tokens": ({"critic_model": build_llama(vocab_size=13)}, "--critic_model .* 13 and the policy 14"),
    "classifier, fewer tokens": ({"critic_model": classifier(vocab_size=13)}, "--critic_model .* 13 and the policy 14"),
    "three labels": ({"critic_model": with_labels(3)}, "one output.* 3"),
    "an adapter": ({"critic_model": adapted()}, "--critic_model must be a whole model.*merge it first"),
}


@pytest.mark.parametrize("case", CRITICS_REFUSED)
def test_critics_are_refused_in_one_line(case: str) -> None:
    settings, message = CRITICS_REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        build(**settings)
    assert "\n" not in str(refusal.value)


def test_the_policy_cannot_be_its_own_separate_critic() -> None:
    model = build_llama()
    with pytest.raises(UserError, match="critic_model is the policy itself"):
        build(model=model, critic_model=model)


@pytest.mark.parametrize("critic", CRITICS)
def test_a_policy_of_which_nothing_is_trained_is_refused(critic: str) -> None:
    model = model_for(critic).requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train: no parameter of the policy has requires_grad"):
        build(Silence(), model=model, critic=critic).train()


def test_a_reward_model_is_where_a_critic_starts_from() -> None:
    start = classifier()
    expected = start.score.weight.detach().clone()
    trainer = build(critic_model=start)
    assert torch.equal(trainer.critic.head.weight, expected)
    trainer.train()
    assert not torch.equal(trainer.critic.head.weight, expected)


def test_data_are_refused_as_for_every_on_policy_trainer() -> None:
    settings, message = DATA_REFUSED["a reward's column"]
    with pytest.raises(UserError, match=message):
        build(**settings)


WITHOUT_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({"kl_coef": 0.0, "kl_estimator": "k2"}, "--kl_estimator=k2 has no effect with --kl_coef=0"),
    ({"kl_coef": 0.0, "kl_in_loss": True}, "--kl_in_loss=True has no effect with --kl_coef=0"),
    ({"kl_coef": 0.0, "reference": build_llama()}, "reference has no effect without --kl_coef"),
    (
        {"mask_truncated": True, "missing_eos_penalty": 1.0},
        "--missing_eos_penalty=1.0 has no effect with --mask_truncated",
    ),
    (
        {"mask_truncated": True, "bootstrap_truncated": True},
        "--bootstrap_truncated=True has no effect with --mask_truncated",
    ),
    (
        {"num_iterations": 1, "steps_per_generation": 1, "target_kl": 0.1},
        "--target_kl=0.1 has no effect with a single optimizer step an iteration",
    ),
]


@pytest.mark.parametrize(("settings", "message"), WITHOUT_EFFECT, ids=[m for _, m in WITHOUT_EFFECT])
def test_settings_without_effect_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        build(**settings)


@pytest.mark.parametrize("critic", CRITICS)
def test_nothing_is_told_where_all_is_well(critic: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows: dict[str, Any] = {"rows": [*ROWS, *ROWS], "target_kl": 0.1, "missing_eos_penalty": 1.0}
        build(model=model_for(critic), critic=critic, bootstrap_truncated=True, **rows)


def test_a_critic_in_half_precision_is_told_though_the_adapter_beside_it_is_not() -> None:
    half = add_lora(build_llama().bfloat16(), LoRASettings(r=2))
    trainer = build(model=half, critic="separate", max_steps=1)
    assert {p.dtype for p in trainer.policy_parameters()} == {torch.float32}
    with pytest.warns(UserWarning, match="trained weights are in half precision"):
        trainer.train()


def test_a_warm_up_that_does_not_end_is_told() -> None:
    with pytest.warns(
        UserWarning, match="the policy learns nothing: --critic_warmup_steps=3, and the run ends at step 3"
    ):
        build(critic_warmup_steps=3).train()


# Rewards


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reward_that_gives_no_score_stops_the_run_in_one_line(fault: str) -> None:
    function, message = FAULTS[fault]
    model = build_llama()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrainingStopped, match=message) as stop:
        build(model=model, rewards={"class_path": function, "name": "raises"}).train()
    assert "\n" not in str(stop.value)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("critic", CRITICS)
def test_scores_that_never_differ(critic: str) -> None:
    """Nothing divides by 0 where they are normalized; and one is told."""
    settings: dict[str, Any] = {"rewards": lambda completion: 0.5, "normalize_rewards": True, "kl_coef": 0.0}
    module = build(NaNGuard(), model=model_for(critic), critic=critic, max_steps=8, **settings)
    with pytest.warns(UserWarning, match="nothing to learn in all 2 iterations: every completion scores 0.5"):
        module.train()
    assert all(p.isfinite().all() for p in module.parameters())
    assert not module.experience.completions["shaped"].any()


# Policies


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("settings", [{}, {"mask_truncated": True}, {"bootstrap_truncated": True}], ids=str)
def test_a_policy_that_never_ends(critic: str, settings: dict[str, Any]) -> None:
    """All is cut off: that is learned from like all else, or nothing of it is."""
    model = always(EOS, never=True)
    if critic == "adapter":
        model = add_lora(model, LoRASettings(r=2))
    module = build(NaNGuard(), model=model, critic=critic, max_steps=8, **settings)
    before = [p.clone() for p in module.parameters()]
    figures = module.train().trainer.callback_metrics
    assert figures["train/truncated"] == 1
    assert figures["train/completion_tokens"] == 5
    assert figures["train/loss"].isfinite()
    stayed = all(map(torch.equal, before, module.parameters()))
    assert stayed == ("mask_truncated" in settings)
    assert (figures["train/grad_norm"] == figures["train/critic_grad_norm"] == 0) == stayed
    if "bootstrap_truncated" in settings:  # with lambda 1 the return behind the last token is what the critic expects
        assert module.experience.completions["value_after"].isfinite().all()


def test_one_is_told_that_everything_is_cut_off_and_left_out() -> None:
    module = build(model=always(EOS, never=True), mask_truncated=True)
    with pytest.warns(UserWarning, match="every completion is cut off, and --mask_truncated leaves those out; raise"):
        module.train()


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("ends", [False, True])
def test_one_token_completions(critic: str, ends: bool) -> None:
    """Return and advantage of the only token are its reward, and that less its value."""
    model = always(EOS) if ends else build_llama()
    if critic == "adapter":
        model = add_lora(model, LoRASettings(r=2))
    one: dict[str, Any] = {"max_new_tokens": 5 if ends else 1, "whiten_advantages": False, "kl_coef": 0.0}
    module = build(NaNGuard(), model=model, critic=critic, max_steps=6, **one, rewards=len_of).train()
    known = module.experience
    assert known.lengths.eq(1).all()
    assert known.completions["truncated"].any() != ends
    torch.testing.assert_close(known.tokens["returns"].double(), known.completions["shaped"].double())
    expected = known.completions["shaped"].double() - known.tokens["values"].double()
    torch.testing.assert_close(known.tokens["advantages"].double(), expected)
    assert all(p.isfinite().all() for p in module.parameters())


def len_of(completion: str) -> float:
    return len(completion) + float("7" in completion)


@pytest.mark.parametrize("whitened", [True, False])
def test_one_completion_is_an_iteration(whitened: bool) -> None:
    """The standard deviation of one number is none: nothing divides by it."""
    settings: dict[str, Any] = {"batch_size": 1, "max_new_tokens": 1, "whiten_advantages": whitened}
    module = build(NaNGuard(), normalize_rewards=True, max_steps=6, **settings).train()
    assert all(p.isfinite().all() for p in module.parameters())


# Losses that are no numbers


class Poison(L.Callback):
    """From the second step on a token is no number to a model."""

    def __init__(self, which: str) -> None:
        self.which, self.hit = which, set[int]()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != 1:
            return
        self.hit = {row for row, ids in zip(batch.rows, batch.input_ids, strict=True) if (ids == 11).any()}
        model = module.critic.body if self.which == "critic" else module.model
        embedding = model.get_input_embeddings()
        embedding.register_forward_hook(lambda _, ids, out: out.masked_fill((ids[0] == 11)[..., None], math.nan))


@pytest.mark.parametrize("which", ["policy", "critic"])
def test_a_loss_that_is_no_number_names_its_completions(which: str) -> None:
    """Whichever model it comes from, and in the critic's warm-up as well."""
    for warm_up in (0, 2) if which == "critic" else (0,):
        poison = Poison(which)
        settings: dict[str, Any] = {"layout": "padded", "steps_per_generation": 2, "critic_warmup_steps": warm_up}
        with pytest.raises(
            NonFiniteLoss, match="stopped before step 2, epoch 0: the loss is nan in micro-batch 1"
        ) as s:
            build(poison, NaNGuard(), **settings).train()
        named = {int(number) for number in str(s.value).partition("(rows ")[2].partition(")")[0].split(", ")}
        assert named == poison.hit
        assert 0 < len(named) < 16


def test_a_schedule_of_the_penalty_needs_one() -> None:
    with pytest.raises(UserError, match="AdaptiveKL needs a KL coefficient above 0 to start from, got 0"):
        build(AdaptiveKL(target=0.1, horizon=10), kl_coef=0.0).train()
