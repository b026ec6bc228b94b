"""PPO for language models, written out with loops over tokens (arXiv 1707.06347, 1506.02438, 1909.08593).

Legend: an answer is a completion; l log-probs of its tokens, V values before them; lists run over its tokens.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class PPO:
    """Settings, by the names and with the defaults of ``RLTrainer``."""

    kl_coef: float = 0.05
    kl_in_loss: bool = False
    kl_estimator: str | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_max: float | None = None
    aggregation: str = "token_mean"
    entropy_coef: float = 0.0
    value_clip: float | None = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    bootstrap_truncated: bool = False
    whiten_advantages: bool = True
    missing_eos_penalty: float | None = None
    reward_clip: float | None = None
    normalize_rewards: bool = False
    mask_truncated: bool = False
    temperature: float = 1.0
    max_new_tokens: int = 12

    @property
    def penalty(self) -> Callable[[float], float]:
        """By x = l_ref - l, of numbers; where it is in the reward."""
        return KL[self.kl_estimator or "k1"]


@dataclass
class Answer:
    """What is known of a completion before anything is learned from it."""

    old: list[float]
    """l when sampled."""
    values: list[float]
    """V when sampled."""
    after: float
    """V behind the last token."""
    score: float
    truncated: bool
    ref: list[float] = field(default_factory=list)
    """l of the reference; empty without one."""
    shaped: float = 0.0
    kl_rewards: list[float] = field(default_factory=list)
    raw_advantages: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


@dataclass
class Now:
    """What the models make of the tokens of a completion at the optimizer step at hand, scalars with gradients."""

    logprobs: list[Tensor]
    entropies: list[Tensor]
    values: list[Tensor]


KL: dict[str, Callable[[float], float]] = {
    "k1": lambda x: -x,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: math.exp(x) - x - 1,
}


def shaped_scores(ppo: PPO, scores: list[float], truncated: list[bool], earlier: Sequence[float] = ()) -> list[float]:
    """(R - mean) / std over all scores of the run up to these, then cut to the range, then the penalty."""
    shaped = list(scores)
    if ppo.normalize_rewards:
        seen = [*earlier, *scores]
        mean, std = statistics.fmean(seen), statistics.stdev(seen) if len(seen) > 1 else 0.0
        shaped = [(r - mean) / (std or 1.0) for r in shaped]
    if ppo.reward_clip is not None:
        shaped = [min(max(r, -ppo.reward_clip), ppo.reward_clip) for r in shaped]
    if ppo.missing_eos_penalty is not None:
        shaped = [r - ppo.missing_eos_penalty if cut else r for r, cut in zip(shaped, truncated, strict=True)]
    return shaped


def penalties(ppo: PPO, answer: Answer) -> list[float]:
    """-beta KL_t of each token, where that is in the reward (arXiv 1909.08593, equation 2)."""
    if ppo.kl_in_loss or not ppo.kl_coef:
        return [0.0] * len(answer.old)
    return [-ppo.kl_coef * ppo.penalty(ref - old) for old, ref in zip(answer.old, answer.ref, strict=True)]


def advantages(rewards: list[float], values: list[float], after: float, gamma: float, lam: float) -> list[float]:
    """sum_k (gamma lambda)^k d_{t+k}: equation 16 of arXiv 1506.02438 as the sum that it is."""
    following = [*values[1:], after]
    d = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)]
    return [math.fsum((gamma * lam) ** k * x for k, x in enumerate(d[t:])) for t in range(len(d))]


def appraise(ppo: PPO, answers: list[Answer], earlier: Sequence[float] = ()) -> None:
    """Fill in what an iteration learns from."""
    scores, truncated = [a.score for a in answers], [a.truncated for a in answers]
    for answer, shaped in zip(answers, shaped_scores(ppo, scores, truncated, earlier), strict=True):
        answer.shaped, answer.kl_rewards = shaped, penalties(ppo, answer)
        rewards = [*answer.kl_rewards[:-1], answer.kl_rewards[-1] + shaped]
        after = answer.after if answer.truncated and ppo.bootstrap_truncated else 0.0
        answer.raw_advantages = advantages(rewards, answer.values, after, ppo.gamma, ppo.gae_lambda)
        answer.returns = [a + v for a, v in zip(answer.raw_advantages, answer.values, strict=True)]
        answer.advantages = answer.raw_advantages
    learned = [a for a in answers if not (ppo.mask_truncated and a.truncated)]
    tokens = [x for answer in learned for x in answer.raw_advantages]
    if ppo.whiten_advantages and tokens:
        mean, std = statistics.fmean(tokens), statistics.stdev(tokens) if len(tokens) > 1 else 0.0
        for answer in answers:
            answer.advantages = [(a - mean) / (std + 1e-8) for a in answer.raw_advantages]


def surrogate(ppo: PPO, ratio: Tensor, advantage: float) -> Tensor:
    """-min(r A, clip(r) A) (arXiv 1707.06347, equation 7); where A < 0 at most -c A (arXiv 1912.09729, equation 5)."""
    low, high = 1 - ppo.clip_low, 1 + ppo.clip_high
    bounded = ratio if low <= ratio.item() <= high else ratio.new_tensor(low if ratio.item() < low else high)
    kept = ratio * advantage
    if (bounded * advantage).item() < kept.item():
        kept = bounded * advantage
    if ppo.ratio_max is not None and advantage < 0 and ppo.ratio_max * advantage > kept.item():
        kept = ratio.new_tensor(ppo.ratio_max * advantage)
    return -kept


def value_error(ppo: PPO, value: Tensor, old: float, target: float) -> Tensor:
    """1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) (arXiv 2403.17031)."""
    error = (value - target) ** 2
    if ppo.value_clip is None:
        return error / 2
    if value.item() > old + ppo.value_clip:
        bounded = value.new_tensor((old + ppo.value_clip - target) ** 2)
    elif value.item() < old - ppo.value_clip:
        bounded = value.new_tensor((old - ppo.value_clip - target) ** 2)
    else:
        bounded = error
    return (error if error.item() >= bounded.item() else bounded) / 2


def token_objective(ppo: PPO, answer: Answer, now: Now, t: int) -> Tensor:
    """What the policy minimises at token ``t``; with the KL penalty where it is in the loss."""
    loss = surrogate(ppo, (now.logprobs[t] - answer.old[t]).exp(), answer.advantages[t])
    loss = loss - ppo.entropy_coef * now.entropies[t]
    if ppo.kl_in_loss and ppo.kl_coef:
        x = answer.ref[t] - now.logprobs[t]
        loss = loss + ppo.kl_coef * {"k1": -x, "k2": x**2 / 2, "k3": x.exp() - x - 1}[ppo.kl_estimator or "k3"]
    return loss


@dataclass
class StepLoss:
    """Of an optimizer step."""

    policy: Tensor
    value: Tensor
    """Before its coefficient."""
    value_clip: float
    """The share of tokens whose value is bounded."""

    def total(self, ppo: PPO) -> Tensor:
        return self.policy + ppo.value_coef * self.value


def step_loss(ppo: PPO, answers: list[Answer], nows: list[Now]) -> StepLoss:
    """Over the completions of a step that are learned from."""
    rows = [
        [token_objective(ppo, answer, now, t) for t in range(len(now.logprobs))]
        for answer, now in zip(answers, nows, strict=True)
    ]
    errors = [
        value_error(ppo, value, answer.values[t], answer.returns[t])
        for answer, now in zip(answers, nows, strict=True)
        for t, value in enumerate(now.values)
    ]
    bounded = sum(not error.requires_grad for error in errors)
    return StepLoss(aggregated(ppo, rows), sum_of(errors) / len(errors), bounded / len(errors))


def aggregated(ppo: PPO, rows: list[list[Tensor]]) -> Tensor:
    """Rows are completions."""
    sums = [sum_of(row) for row in rows]
    if ppo.aggregation == "token_mean":
        return sum_of(sums) / sum(len(row) for row in rows)
    if ppo.aggregation == "sequence_mean":
        return sum_of([x / len(row) for x, row in zip(sums, rows, strict=True)]) / len(rows)
    assert ppo.aggregation == "fixed_length_mean"
    return sum_of(sums) / (len(rows) * ppo.max_new_tokens)


def sum_of(x: list[Tensor]) -> Tensor:
    return sum(x, torch.zeros((), dtype=torch.float64))
