"""The policy's part of an optimizer step: the objective on a micro-batch of experience, and figures of its tokens."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from relax import causal_lm
from relax.experience import Minibatch
from relax.losses import TokenStatistics, token_logprobs, weighted_logprob_sum
from relax.policy_gradient import Objective, PolicyLoss, PolicyTokens, logprob_weights, policy_loss, token_mean

if TYPE_CHECKING:
    from trainers.on_policy import OnPolicyTrainer


class StepPart(NamedTuple):
    """What a model contributes to an optimizer step, of a micro-batch."""

    loss: Tensor
    figures: dict[str, Tensor]
    """Detached; means over the tokens of the step that are computed."""


def policy_step(
    trainer: "OnPolicyTrainer", batch: Minibatch, hidden: Tensor, advantages: Tensor, objective: Objective
) -> StepPart:
    """The loss of a micro-batch with gradients in the policy.

    Args:
        trainer: whose policy it is.
        batch: K target tokens.
        hidden: [K, D], the policy's states that predict them.
        advantages: [K].
        objective: what is minimised.
    """
    head, targets = causal_lm.language_head(trainer.model), batch.batch.targets
    temperature, compiled = trainer.temperature, trainer.compiles_loss
    if batch.fresh and not trainer.noisy and not objective.entropy_coef:
        # The policy is still the one that sampled: its log-probs are known, and so is the derivative of the loss.
        tokens = policy_tokens(batch, batch.tokens["logprobs"], None, advantages)
        result = policy_loss(tokens, objective, batch.totals)
        weights = logprob_weights(tokens, objective, batch.totals)
        total, found = weighted_logprob_sum(hidden, head, targets, weights, temperature=temperature, compiled=compiled)
        loss = total + (result.loss - total.detach())
    else:
        found = token_logprobs(hidden, head, targets, temperature=temperature, compiled=compiled)
        tokens = policy_tokens(batch, found.logprobs, found.entropy, advantages)
        result = policy_loss(tokens, objective, batch.totals)
        loss = result.loss
    trainer.step_watch.note_ratio(result.ratio)
    return StepPart(loss, _figures(batch, result, found))


def policy_tokens(batch: Minibatch, logprobs: Tensor, entropy: Tensor | None, advantages: Tensor) -> PolicyTokens:
    """What the objective needs to know of each token."""
    known = batch.tokens
    reference, selected = known.get("ref_logprobs"), known.get("selected")
    advantages = advantages.to(logprobs.dtype)
    return PolicyTokens(batch.segments, logprobs, known["logprobs"], advantages, reference, entropy, selected)


def of_computed(batch: Minibatch, x: Tensor) -> Tensor:
    """The part of this micro-batch in the mean of ``x`` [K] over the tokens of the step that are computed."""
    totals = batch.totals
    return totals.micro_batches * (totals.tokens / batch.computed_tokens) * token_mean(x, batch.segments, totals)


def _figures(batch: Minibatch, result: PolicyLoss, found: TokenStatistics) -> dict[str, Tensor]:
    scale = batch.totals.tokens / batch.computed_tokens
    means = dict(result.means)
    figures = {"policy_loss": means.pop("policy_loss")} | {name: scale * mean for name, mean in means.items()}
    figures["entropy"] = of_computed(batch, found.entropy.detach())
    if batch.fresh:  # how far the log-probs of sampling are from those of training: rounding, where all is well
        figures["logprob_gap"] = of_computed(batch, (found.logprobs.detach() - batch.tokens["logprobs"]).abs())
    return figures
