"""The same losses and advantages as TRL's own trainers on the same tokens and rewards. Runs where TRL is installed."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from byte_tokenizers import byte_tokenizer
from policy_tokens import ADVANTAGES, LENGTHS, MAX_TOKENS, OBJECTIVES, make_tokens, totals
from tiny_models import tiny_model
from torch import Tensor

from relax.policy_gradient import (
    KL_ESTIMATORS,
    ClipRange,
    Objective,
    PolicyTokens,
    group_advantages,
    penalized_scores,
    policy_loss,
    soft_overlong_penalty,
    top_entropy_threshold,
)

trl = pytest.importorskip("trl", minversion="1.16")

GROUP = 3
REWARDS = [1.0, 0.0, 0.25, 2.0, 2.5, -1.0]


def built(kind: str, folder: Path) -> Any:
    """A trainer that generates nothing: what it would sample and score is given."""
    trainer_class, config_class = {
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    }[kind]
    config = config_class(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, num_generations=GROUP, beta=0.0,
        per_device_train_batch_size=len(REWARDS), max_completion_length=MAX_TOKENS,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": "x"}] * 8)
    trainer = trainer_class(tiny_model(), lambda **_: list(REWARDS), config, rows, processing_class=byte_tokenizer())
    trainer.model.eval()  # in training mode TRL divides by the accumulation steps
    completions = [[65] * length for length in LENGTHS]
    trainer._generate_single_turn = lambda *_: (completions, None) if kind == "grpo" else completions
    return trainer


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built("grpo", tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def rloo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built("rloo", tmp_path_factory.mktemp("rloo"))


def padded(x: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(x.split(LENGTHS)), batch_first=True)


def inputs(tokens: PolicyTokens) -> dict[str, Tensor]:
    mask = padded(torch.ones(sum(LENGTHS), dtype=torch.long))
    assert tokens.ref_logprobs is not None
    old = padded(tokens.old_logprobs)
    return {
        "prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1], "completion_ids": mask, "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64), "num_items_in_batch": mask.sum(),
        "old_per_token_logps": old, "old_logps": old.sum(-1), "ref_per_token_logps": padded(tokens.ref_logprobs),
    }  # fmt: skip


def theirs(trainer: Any, tokens: PolicyTokens, **settings: Any) -> Tensor:
    """TRL's loss, with the attributes that its constructor would have set."""
    assert tokens.entropy is not None
    logprobs, entropies = padded(tokens.logprobs), padded(tokens.entropy)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropies, None)
    plain = {
        "loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2,
        "epsilon_high": 0.2, "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "delta": None,
        "use_bias_correction_kl": False,
    }  # fmt: skip
    settings = plain | settings
    trainer.args.delta, trainer.args.use_bias_correction_kl = (
        settings.pop("delta"),
        settings.pop("use_bias_correction_kl"),
    )
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer._entropy_bonus_enabled = settings["entropy_coef"] > 0
    return trainer._compute_loss(trainer.model, inputs(tokens))


TWO_SIDED = Objective(aggregation="sequence_mean", clip=ClipRange(0.2, 0.28, 1.5))
WITH_KL = dataclasses.replace(OBJECTIVES["grpo"], kl_times_ratio=True)
BONUS = dataclasses.replace(OBJECTIVES["dapo"], entropy_coef=0.01)
CASES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "grpo": (OBJECTIVES["grpo"], {"beta": 0.04}),
    "grpo, KL times ratio": (WITH_KL, {"beta": 0.04, "use_bias_correction_kl": True}),
    "two-sided clip": (TWO_SIDED, {"epsilon_high": 0.28, "delta": 1.5}),
    "dapo": (OBJECTIVES["dapo"], {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo, entropy bonus": (BONUS, {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.01}),
    "dr_grpo": (OBJECTIVES["dr_grpo"], {"loss_type": "dr_grpo"}),
    "gspo": (
        OBJECTIVES["gspo"],
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": (OBJECTIVES["cispo"], {"loss_type": "cispo", "epsilon_high": 5.0}),
}


@pytest.mark.parametrize("drift", [1e-4, 0.3, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(grpo: Any, case: str, drift: float) -> None:
    objective, settings = CASES[case]
    check(policy_loss(tokens := make_tokens(drift), objective, totals()).loss, theirs(grpo, tokens, **settings), tokens)


def check(found: Tensor, expected: Tensor, tokens: PolicyTokens) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    gradients = (torch.autograd.grad(x, tokens.logprobs)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("drift", [0.01, 0.3, 3.0])
def test_rloo_is_that_of_trl(rloo: Any, drift: float) -> None:
    tokens = make_tokens(drift)
    check(policy_loss(tokens, OBJECTIVES["rloo"], totals()).loss, theirs(rloo, tokens), tokens)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_top_entropy_tokens_are_those_of_trl(grpo: Any, share: float) -> None:
    tokens = make_tokens()
    assert tokens.entropy is not None
    selected = tokens.entropy >= top_entropy_threshold(tokens.entropy, share)
    loss = policy_loss(tokens._replace(selected=selected), OBJECTIVES["grpo"], totals()).loss
    check(loss, theirs(grpo, tokens, beta=0.04, top_entropy_quantile=share), tokens)


REWARDS_GIVEN = [REWARDS, [0.5] * 6, [None, 1.0, 3.0, 0.5, 0.5, None], [None, None, 1.0, *[None] * 3]]


def their_advantages(trainer: Any, rewards: list[float | None]) -> Tensor:
    trainer.reward_funcs = [lambda **_: list(rewards)]
    return trainer._generate_and_score_completions([{"prompt": "x"}] * 6)["advantages"]


def ours(name: str, rewards: list[float | None]) -> Tensor:
    scores = torch.tensor([torch.nan if r is None else r for r in rewards])
    return group_advantages(name, scores, torch.tensor([0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize("rewards", REWARDS_GIVEN)
@pytest.mark.parametrize(("name", "theirs"), [("group_std", "group"), ("group_mean", "none"), ("batch_std", "batch")])
def test_group_advantages_are_those_of_trl(grpo: Any, name: str, theirs: str, rewards: list[float | None]) -> None:
    grpo.scale_rewards, grpo.beta = theirs, 0.0
    torch.testing.assert_close(ours(name, rewards), their_advantages(grpo, rewards), rtol=2e-6, atol=1e-7)


def test_of_equal_scores_trl_learns_noise_and_we_do_not(grpo: Any) -> None:
    grpo.scale_rewards, grpo.beta = "group", 0.0
    assert 1e-6 < their_advantages(grpo, [0.9] * 6).abs().max() < 1e-3
    assert not ours("group_std", [0.9] * 6).any()


@pytest.mark.parametrize("rewards", REWARDS_GIVEN)
def test_leave_one_out_advantages_are_those_of_trl(rloo: Any, rewards: list[float | None]) -> None:
    rloo.beta = 0.0
    torch.testing.assert_close(ours("leave_one_out", rewards), their_advantages(rloo, rewards), rtol=2e-6, atol=2e-7)


def test_the_kl_penalty_in_the_reward_is_that_of_trl(rloo: Any) -> None:
    tokens, reference = make_tokens(dtype=torch.float32), object()
    assert tokens.ref_logprobs is not None
    old, ref = padded(tokens.old_logprobs), padded(tokens.ref_logprobs)
    rloo._get_per_token_logps_and_entropies = lambda model, *_, **__: (ref if model is reference else old, None, None)
    rloo.beta, rloo.ref_model = 0.05, reference
    kl = KL_ESTIMATORS["k1"](tokens.ref_logprobs - tokens.old_logprobs)
    scores = penalized_scores(torch.tensor(REWARDS), kl, tokens.segments, 0.05)
    found = ours("leave_one_out", scores.tolist())
    torch.testing.assert_close(found, their_advantages(rloo, list(REWARDS)), rtol=2e-6, atol=2e-7)


def test_the_soft_overlong_penalty_is_that_of_trl() -> None:
    rewards = pytest.importorskip("trl.rewards")
    lengths = list(range(1, 30))
    expected = rewards.get_soft_overlong_punishment(20, 5)([[0] * n for n in lengths])
    found = soft_overlong_penalty(torch.tensor(lengths), max_tokens=20, buffer_tokens=5)
    torch.testing.assert_close(found, torch.tensor(expected))
