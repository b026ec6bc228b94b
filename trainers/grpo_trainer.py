"""Group relative policy optimization (GRPO, arXiv 2402.03300), and the methods that grew from it: no value function.

Read ``collect`` and ``compute_loss``: 1. a group of completions for each prompt; 2. their scores; 3. how much better
each is than its group; 4. the clipped loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from relax import causal_lm
from relax.data.examples import Row
from relax.data.prompts import PromptDataset
from relax.data.rows import Rows
from relax.experience import Experience, Minibatch
from relax.policy_gradient import (
    KL_ESTIMATORS,
    Segments,
    group_advantages,
    penalized_scores,
    top_entropy_threshold,
    without_variance,
)
from relax.rewards import Rewards
from relax.rewards.specs import Entry
from trainers.flat_iterations import FlatIterations
from trainers.grpo_settings import METHOD, build_method, check_method, warn_without_effect
from trainers.iteration import generate, recall, score
from trainers.model_checks import computes_in_half_precision
from trainers.on_policy import OnPolicyTrainer
from trainers.policy_step import policy_step
from trainers.prompting import PromptSource
from trainers.rollout_figures import rollout_figures
from trainers.settings import defaults_of


class GRPOTrainer(OnPolicyTrainer):
    """Improve a policy with reward functions, by comparing completions of the same prompt.

    Args:
        model: as for ``OnPolicyTrainer``; so are all further keywords.
        tokenizer: the model's tokenizer.
        train_dataset: rows with prompts, and the columns that reward functions need.
        rewards: reward functions.
        preset: a published method: grpo, dapo, dr_grpo, gspo, cispo, rloo; what follows changes parts of it.
        advantage: group_std, group_mean, batch_std, leave_one_out.
        ratio: token, sequence, completion.
        surrogate: clip, cispo.
        aggregation: sequence_mean, token_mean, fixed_length_mean.
        clip_low: the ratio acts down to 1 - clip_low.
        clip_high: the ratio acts up to 1 + clip_high.
        ratio_max: bound of the ratio where the advantage is negative (two-sided clip); of the weight of cispo.
        kl_coef: of the penalty on the distance from the reference model; default: the preset's (grpo 0.04, rloo 0.05).
        kl_estimator: k1, k2, k3.
        entropy_coef: factor of a bonus on the entropy.
        top_entropy_share: learn only from this share of the tokens, those of the highest entropy (arXiv 2506.01939).
        dynamic_sampling: ask fresh prompts in place of those whose completions all score the same (arXiv 2503.14476).
        max_sampling_rounds: so often, at most, the first time included.
        config: further settings to record.

    Raises:
        UserError: rows that cannot be used, or a setting that cannot work.
    """

    bound = (*OnPolicyTrainer.bound, *METHOD, "dynamic_sampling", "max_sampling_rounds")

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: Rows | PromptDataset | None = None,
        rewards: Rewards | Entry | Sequence[Entry],
        preset: str = "dapo",
        advantage: str | None = None,
        ratio: str | None = None,
        surrogate: str | None = None,
        aggregation: str | None = None,
        clip_low: float | None = None,
        clip_high: float | None = None,
        ratio_max: float | None = None,
        kl_coef: float | None = None,
        kl_estimator: str | None = None,
        entropy_coef: float = 0.0,
        top_entropy_share: float | None = None,
        dynamic_sampling: bool = False,
        max_sampling_rounds: int = 4,
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        given = locals()
        method = {name: given[name] for name in METHOD}
        sampling = {"dynamic_sampling": dynamic_sampling, "max_sampling_rounds": max_sampling_rounds}
        self.check(**method, **sampling, **settings)
        self.advantage, objective = build_method(method)
        warn_without_effect(method | sampling, objective)
        super().__init__(
            model,
            tokenizer,
            train_dataset=train_dataset,
            rewards=rewards,
            kl_coef=objective.kl_coef,
            kl_estimator=objective.kl_estimator,
            config=method | sampling | dict(config or {}),
            **settings,
        )
        self.objective, self.top_entropy_share = objective, top_entropy_share
        self.dynamic_sampling, self.max_sampling_rounds = dynamic_sampling, max_sampling_rounds
        self._flat_iterations = FlatIterations()

    @classmethod
    def check(cls, **settings: Any) -> None:
        """As ``Trainer.check``."""
        defaults = defaults_of(GRPOTrainer)
        own = defaults | {name: value for name, value in settings.items() if name in defaults}
        _, objective = check_method(own, settings.get("num_generations"))
        others = {name: value for name, value in settings.items() if name not in defaults}
        super().check(**others | {"kl_coef": objective.kl_coef, "kl_estimator": objective.kl_estimator})

    def on_train_end(self) -> None:
        """Lightning's hook."""
        self._flat_iterations.finish()

    def collect(self, prompts: PromptSource) -> Experience:
        """One iteration's experience: completions, scores, advantages."""
        asked = prompts.take(prompts.wanted)
        groups = generate(self, asked)
        groups = score(self, groups, asked)
        if self.dynamic_sampling:
            groups = self.with_variance(groups, prompts)
        self._flat_iterations.watch(groups, self.trained(groups), groups.groups)
        groups = recall(self, groups)
        advantages = group_advantages(self.advantage, self.penalized(groups), groups.groups)
        return self.select_tokens(groups.with_completions({"advantage": advantages}))

    def compute_loss(self, batch: Minibatch | Sequence[Row] | Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped loss of a minibatch of experience, and figures of its tokens.

        Handed a batch of prompts it does all four steps: one fully on-policy update.
        """
        if not isinstance(batch, Minibatch):
            batch = self.whole_update(batch)
        hidden = causal_lm.hidden_states(self.model, batch.batch)
        advantages = batch.segments.spread(batch.completions["advantage"])
        step = policy_step(self, batch, hidden, advantages, replace(self.objective, kl_coef=self.kl_coef))
        return step.loss, step.figures

    # Steps of ``collect``

    def with_variance(self, groups: Experience, prompts: PromptSource) -> Experience:
        """Groups that something can be learned from, as many as there were, in place of those without variance.

        Fresh prompts are asked until there are enough, or ``max_sampling_rounds`` is reached; then some are without.
        """
        wanted, drawn, rounds = len(groups.prompts), groups, 1
        while rounds < self.max_sampling_rounds:
            varied = int((~_flat(drawn)).sum())
            missing, share = max(0, wanted - varied), max(varied, 1) / len(drawn.prompts)
            fresh = prompts.take(min(wanted, math.ceil(missing / share)))
            if not fresh:
                break
            drawn = Experience.joined([drawn, score(self, generate(self, fresh), fresh)])
            rounds += 1
        flat = _flat(drawn)
        # Of all that were asked: those that are kept are neither as good nor as bad as the policy is.
        self.sampling_figures = rollout_figures(drawn, self.step_watch.seconds) | {"prompts_asked": float(len(flat))}
        order = torch.argsort(flat.int(), stable=True)[:wanted]
        return drawn.chosen(sorted(order.tolist()))

    def penalized(self, groups: Experience) -> Tensor:
        """[S], scores, less the KL penalty where the method has it there."""
        scores = groups.completions["score"]
        if not self.objective.kl_in_reward or not self.compares:
            return scores
        kl = KL_ESTIMATORS[self.kl_estimator](groups.tokens["ref_logprobs"] - groups.tokens["logprobs"])
        return penalized_scores(scores, kl.double(), Segments.of(groups.lengths), self.kl_coef)

    def select_tokens(self, groups: Experience) -> Experience:
        """The same with the tokens that are learned from, where not all are."""
        if self.top_entropy_share is None:
            return groups
        entropy, trained = groups.tokens["entropy"], Segments.of(groups.lengths).spread(self.trained(groups))
        return groups.with_tokens(selected=entropy >= top_entropy_threshold(entropy[trained], self.top_entropy_share))

    def idle(self, experience: Experience) -> Tensor:
        """[S], bool: completions no better or worse than their group, where only that matters."""
        penalized = self.compares and not self.objective.kl_in_reward
        if penalized or self.objective.entropy_coef:
            return torch.zeros(len(experience), dtype=torch.bool)
        return experience.completions["advantage"] == 0

    @property
    def rereads(self) -> bool:
        """As in the parent; sampling gives no entropies.

        In half precision its log-probs are not quite those of training. A ratio of whole completions, whose bounds are
        narrow (gspo) or whose errors add up (rloo), would be clipped for that.
        """
        moves = self.objective.ratio != "token" and self.steps_per_generation * self.num_iterations > 1
        rounded = moves and computes_in_half_precision(self)
        return super().rereads or self.top_entropy_share is not None or rounded


def _flat(groups: Experience) -> Tensor:
    return without_variance(groups.completions["score"], groups.groups)
