"""From scores and values to what PPO learns from: shaped scores, advantages, returns; and what is logged of them.

The equations are pure functions in ``relax.policy_gradient``; here is said what of an iteration goes into them.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relax.experience import Experience
from relax.policy_gradient import (
    KL_ESTIMATORS,
    Moments,
    Segments,
    explained_variance,
    generalized_advantages,
    normalized,
    token_rewards,
    whitened,
    without_end_penalized,
)

if TYPE_CHECKING:
    from trainers.rl_trainer import RLTrainer


def shape(trainer: "RLTrainer", experience: Experience) -> Experience:
    """The same with ``shaped``: scores normalized, then clipped, then less the penalty for a missing end."""
    scores = experience.completions["score"]
    if trainer.normalize_rewards:
        trainer.score_moments = Moments.merged([trainer.score_moments, Moments.of(scores)])
        scores = normalized(scores, trainer.score_moments)
    if trainer.reward_clip is not None:
        scores = scores.clamp(-trainer.reward_clip, trainer.reward_clip)
    if trainer.missing_eos_penalty is not None:
        scores = without_end_penalized(scores, experience.completions["truncated"], trainer.missing_eos_penalty)
    return experience.with_completions({"shaped": scores})


def estimate(trainer: "RLTrainer", experience: Experience) -> Experience:
    """The same with ``returns`` and ``advantages`` of each token; in fp64, on the CPU."""
    segments = Segments.of(experience.lengths)
    values, shaped = experience.tokens["values"].double(), experience.completions["shaped"].double()
    kl = _token_kl(trainer, experience)
    rewards = token_rewards(shaped, kl, segments, trainer.kl_coef_of_rewards)
    after = None
    if trainer.bootstrap_truncated:
        after = experience.completions["value_after"].double() * experience.completions["truncated"]
    gae = partial(generalized_advantages, rewards, values, segments, gamma=trainer.gamma, last_values=after)
    advantages, returns = gae(lam=trainer.gae_lambda)
    plain_sums = gae(lam=1.0)[1]
    counts = trainer.trained(experience)
    trained = segments.spread(counts)
    trainer.sampling_figures |= _critic_figures(*(x[trained] for x in (values, returns, advantages, plain_sums)))
    trainer.sampling_figures |= _objective_figures(trainer, shaped[counts], segments.sums(kl)[counts])
    if trainer.whiten_advantages:
        advantages = whitened(advantages, Moments.of(advantages[trained]))
    dtype = experience.tokens["values"].dtype
    return experience.with_tokens(advantages=advantages.to(dtype), returns=returns.to(dtype))


def _token_kl(trainer: "RLTrainer", experience: Experience) -> Tensor:
    """[N], the KL of each token by ``kl_estimator``; 0 without a reference."""
    logprobs = experience.tokens["logprobs"].double()
    if not trainer.compares:
        return torch.zeros_like(logprobs)
    return KL_ESTIMATORS[trainer.kl_estimator](experience.tokens["ref_logprobs"].double() - logprobs)


def _critic_figures(values: Tensor, returns: Tensor, advantages: Tensor, plain_sums: Tensor) -> dict[str, float]:
    """Of all tokens of an iteration that are learned from; nothing of none.

    Args:
        values: [N], what the critic expected.
        returns: [N], what it is trained on.
        advantages: [N], before whitening.
        plain_sums: [N], discounted sums of the rewards that came, the critic left out (lambda 1).
    """
    if not len(values):
        return {}
    spread = Moments.of(advantages)
    return {
        "value": float(values.mean()),
        "return": float(returns.mean()),
        "advantage_mean": spread.mean,
        "advantage_std": spread.std,
        "explained_variance": explained_variance(Moments.of(returns), Moments.of(returns - values)),
        "explained_variance_mc": explained_variance(Moments.of(plain_sums), Moments.of(plain_sums - values)),
    }


def _objective_figures(trainer: "RLTrainer", shaped: Tensor, kl: Tensor) -> dict[str, float]:
    """What is maximised, with the KL penalty and without: means over completions that are learned from.

    Args:
        trainer: whose penalty it is.
        shaped: [S], scores.
        kl: [S], of whole completions.
    """
    if not len(shaped):
        return {}
    objective, penalty = float(shaped.mean()), float(kl.mean())
    if not trainer.compares:
        return {"objective_without_kl": objective}
    return {
        "objective_without_kl": objective,
        "objective_with_kl": objective - trainer.kl_coef * penalty,
        "kl_reward": -trainer.kl_coef_of_rewards * penalty,
    }
