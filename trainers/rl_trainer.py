"""Proximal policy optimization (PPO, arXiv 1707.06347) for language models, with a value function (the critic).

Read ``collect`` and ``compute_loss``: 1. completions; 2. their scores; 3. what the critic expects at each token, and
how much better it came (GAE, in ``trainers.estimation``); 4. the clipped losses of policy and critic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relax import causal_lm
from relax.critic import build_critic
from relax.data.examples import Row
from relax.data.prompts import PromptDataset
from relax.data.rows import Rows
from relax.early_gradient import formed_now
from relax.errors import UserError
from relax.experience import Experience, Minibatch
from relax.optimizers import decay_groups
from relax.policy_gradient import Moments, token_mean, update_went_too_far, value_loss
from relax.ranks import over_ranks
from relax.rewards import Rewards
from relax.rewards.specs import Entry
from trainers.estimation import estimate, shape
from trainers.flat_iterations import FlatIterations
from trainers.iteration import appraise, generate, recall, score
from trainers.on_policy import OnPolicyTrainer
from trainers.optimization import gradients_are_exact
from trainers.policy_step import StepPart, of_computed, policy_step
from trainers.prompting import PromptSource
from trainers.rl_settings import (
    CRITIC,
    ESTIMATE,
    OBJECTIVE,
    check_ppo,
    warn_of_an_endless_warm_up,
    warn_without_effect,
)
from trainers.rollout_batches import RolloutBatches
from trainers.settings import defaults_of


class RLTrainer(OnPolicyTrainer):
    """Improve a policy with reward functions or a reward model, by PPO.

    Args:
        model: as for ``OnPolicyTrainer``; so are all further keywords.
        tokenizer: the model's tokenizer.
        train_dataset: rows with prompts, and the columns that reward functions need.
        rewards: reward functions.
        learning_rate: as for ``OnPolicyTrainer``; about ten times as much for a LoRA adapter.
        num_generations: completions of each prompt.
        num_iterations: passes over the completions of an iteration (PPO's epochs).
        critic: adapter (one more on the policy's frozen backbone), separate (a model of its own), shared (a head on the
            policy's states); default: adapter where the policy has one, else separate.
        critic_model: what a separate critic starts from; default: a copy of the policy.
        critic_learning_rate: default: learning_rate.
        critic_warmup_steps: the first optimizer steps, in which only the critic learns.
        kl_coef: factor of the KL penalty that keeps the policy near the reference; 0 needs no reference.
        kl_in_loss: the penalty is part of the loss, not of the rewards.
        kl_estimator: k1, k2 or k3 (Schulman 2020); default: k1 in the rewards, k3 in the loss.
        clip_low: the ratio acts down to 1 - clip_low.
        clip_high: the ratio acts up to 1 + clip_high.
        ratio_max: bound of the ratio where the advantage is negative (dual clip, arXiv 1912.09729).
        aggregation: token_mean, sequence_mean, fixed_length_mean.
        entropy_coef: factor of a bonus on the entropy.
        value_clip: how far values may move from those of sampling; None does not bound them.
        value_coef: factor of the critic's loss.
        gamma: discount of rewards, per token.
        gae_lambda: 1 for plain sums of rewards, 0 for one step (arXiv 1506.02438).
        bootstrap_truncated: what is cut off would have earned what the critic expects; else nothing more.
        whiten_advantages: shift and scale those of an iteration to mean 0 and standard deviation 1.
        missing_eos_penalty: taken off the score of what is cut off.
        reward_clip: scores, normalized or not, are cut to this distance from 0.
        normalize_rewards: shift and scale scores by the mean and standard deviation of all of the run so far.
        target_kl: per token, nats: an update that finds the policy 1.5 times as far from the one that sampled is not
            made, nor are those after it in the iteration; None sets no limit.
        config: further settings to record.

    Attributes:
        critic: the value function.
        score_moments: of all scores of the run so far, where they are normalized.

    Raises:
        UserError: rows that cannot be used, or a setting that cannot work.
    """

    bound = (
        *(*OnPolicyTrainer.bound, *ESTIMATE, "target_kl", "critic_warmup_steps", "value_clip", "value_coef"),
        *(name for name in OBJECTIVE if name != "kl_coef"),
    )

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: Rows | PromptDataset | None = None,
        rewards: Rewards | Entry | Sequence[Entry],
        learning_rate: float = 3e-6,
        num_generations: int = 1,
        num_iterations: int = 4,
        critic: Literal["adapter", "separate", "shared"] | None = None,
        critic_model: nn.Module | None = None,
        critic_learning_rate: float | None = None,
        critic_warmup_steps: int = 0,
        kl_coef: float = 0.05,
        kl_in_loss: bool = False,
        kl_estimator: str | None = None,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        ratio_max: float | None = None,
        aggregation: str = "token_mean",
        entropy_coef: float = 0.0,
        value_clip: float | None = 0.2,
        value_coef: float = 0.1,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        bootstrap_truncated: bool = False,
        whiten_advantages: bool = True,
        missing_eos_penalty: float | None = None,
        reward_clip: float | None = None,
        normalize_rewards: bool = False,
        target_kl: float | None = None,
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        given = locals()
        own = {name: given[name] for name in (*CRITIC, *OBJECTIVE, *ESTIMATE, "target_kl")}
        usual = {name: given[name] for name in USUAL}
        self.check(**own, **usual, **settings)
        objective = check_ppo(own)
        warn_without_effect(own, settings | usual, defaults_of(RLTrainer))
        built = build_critic(critic, model, critic_model, seed=settings.get("seed", 0))
        super().__init__(
            model,
            tokenizer,
            train_dataset=train_dataset,
            rewards=rewards,
            kl_coef=kl_coef,
            kl_estimator=objective.kl_estimator,
            config=own | dict(config or {}),
            **usual,
            **settings,
        )
        self.critic, self.objective = built, objective
        if settings.get("gradient_checkpointing"):  # the parent does so for the policy
            built.enable_gradient_checkpointing()
        self.critic_learning_rate = critic_learning_rate or learning_rate
        self.critic_warmup_steps, self.value_clip, self.value_coef = critic_warmup_steps, value_clip, value_coef
        self.gamma, self.gae_lambda, self.bootstrap_truncated = gamma, gae_lambda, bootstrap_truncated
        self.whiten_advantages, self.missing_eos_penalty = whiten_advantages, missing_eos_penalty
        self.reward_clip, self.normalize_rewards, self.target_kl = reward_clip, normalize_rewards, target_kl
        self.score_moments, self._flat_iterations = Moments(), FlatIterations()
        self._steps_learned = 0  # of the iteration
        self._old_kl: list[Tensor] = []  # of the optimizer step's micro-batches

    @classmethod
    def check(cls, **settings: Any) -> None:
        """As ``Trainer.check``."""
        defaults = defaults_of(RLTrainer)
        own = defaults | {name: value for name, value in settings.items() if name in defaults}
        objective = check_ppo(own)
        others = {name: value for name, value in settings.items() if name not in defaults}
        others |= {name: own[name] for name in USUAL}
        super().check(**others, kl_coef=objective.kl_coef, kl_estimator=objective.kl_estimator)

    def collect(self, prompts: PromptSource) -> Experience:
        """One iteration's experience: completions, scores, values, advantages."""
        asked = prompts.take(prompts.wanted)
        experience = generate(self, asked)
        experience = score(self, experience, asked)
        if self.missing_eos_penalty is None:  # else there is an end to be learned
            everything = torch.zeros(len(experience), dtype=torch.int64)  # the critic compares all with all
            self._flat_iterations.watch(experience, self.trained(experience), everything)
        experience = recall(self, experience)
        experience = appraise(self, experience)
        self._steps_learned, self.halted = 0, False
        return estimate(self, shape(self, experience))

    def compute_loss(self, batch: Minibatch | Sequence[Row] | Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped losses of policy and critic on a minibatch of experience, and figures of its tokens.

        Handed a batch of prompts it does all four steps: one fully on-policy update.
        """
        if not isinstance(batch, Minibatch):
            batch = self.whole_update(batch)
        if self.halted:
            return untouched([*self.policy_parameters(), *self.critic.learned()]), {}
        if self.warms_up:
            critic = self.critic_step(batch, self._frozen_states(batch))
            return critic.loss + untouched(self.policy_parameters()), critic.figures
        shared = causal_lm.hidden_states(self.model, batch.batch) if self.critic.shares_states else None
        critic = self.critic_step(batch, shared)  # first: a critic apart can then let go of its activations
        hidden = causal_lm.hidden_states(self.model, batch.batch) if shared is None else shared
        objective = replace(self.objective, kl_coef=self.kl_coef)
        policy = policy_step(self, batch, hidden, batch.tokens["advantages"], objective)
        self._old_kl.append(policy.figures["old_kl"])
        return policy.loss + critic.loss, policy.figures | critic.figures

    def critic_step(self, batch: Minibatch, states: Tensor | None) -> StepPart:
        """``value_coef`` times the value loss of a minibatch, with gradients in the critic.

        Args:
            batch: K target tokens.
            states: [K, D] of the policy, for a critic that reads them.
        """
        values = self.critic(batch.batch, states)
        found = value_loss(values, batch.tokens["values"], batch.tokens["returns"], self.value_clip)
        loss = batch.totals.micro_batches * token_mean(found.loss, batch.segments, batch.totals)
        figures = {"value_loss": loss.detach(), "value_clip": of_computed(batch, found.clipped.to(loss.dtype))}
        loss = self.value_coef * loss
        if loss.requires_grad and not self.critic.shares_states and gradients_are_exact(self.trainer):
            slope = 1 / self.trainer.accumulate_grad_batches
            loss = formed_now(loss, self.critic.learned(), slope=slope)
        return StepPart(loss, figures)

    @property
    def kl_coef_of_rewards(self) -> float:
        """Of the penalty on each token's reward."""
        return self.kl_coef if self.objective.kl_in_reward else 0.0

    @property
    def beside_checkpoint(self) -> dict[str, Any]:
        """As in the parent; the critic's rate, however it was given."""
        return super().beside_checkpoint | {"critic_learning_rate": self.critic_learning_rate}

    def idle(self, experience: Experience) -> Tensor:
        """None: the critic has something to learn from every completion."""
        return torch.zeros(len(experience), dtype=torch.bool)

    @torch.no_grad()
    def row_losses(self, batch: Any) -> dict[int, float]:
        """As in the parent, and the summed value loss: no number where policy or critic gives none."""
        losses = super().row_losses(batch)
        if not losses:
            return losses
        errors = (self.critic(batch.batch) - batch.tokens["returns"]).square()
        own = dict(zip(batch.rows, batch.segments.sums(errors).tolist(), strict=True))
        return {row: loss + self.value_coef * own[row] for row, loss in losses.items()}

    # Optimizer steps

    @property
    def warms_up(self) -> bool:
        """Only the critic learns; not in a dry run, which shall see what takes most memory."""
        return self.trainer.global_step < self.critic_warmup_steps and not self._rehearses

    def policy_parameters(self) -> list[nn.Parameter]:
        """What is trained of the policy."""
        others = {id(p) for p in self.critic.learned()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in others]

    def separate_parts(self) -> dict[str, list[nn.Parameter]]:
        """Policy and critic: a large error of the one does not shorten the step of the other."""
        return {"grad_norm": self.policy_parameters(), "critic_grad_norm": self.critic.learned()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the policy, then those of the critic with their own rate.

        Raises:
            UserError: nothing of the policy is trainable.
        """
        if not self.policy_parameters():
            raise UserError("nothing to train: no parameter of the policy has requires_grad; unfreeze some")
        policy = decay_groups(self.policy_parameters(), self.weight_decay)
        critic = decay_groups(self.critic.learned(), self.weight_decay)
        return [*policy, *({**group, "lr": self.critic_learning_rate} for group in critic)]

    def build_batches(self, *, packed: bool) -> RolloutBatches:
        """As in the parent; the critic reads what the policy reads."""
        with self.trainer.precision_plugin.forward_context():  # as in training: some kernels take half precision only
            self.critic.prepare(packed=packed)
        return super().build_batches(packed=packed)

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        self.halted, self._steps_learned, self.score_moments = False, 0, Moments()
        self._old_kl.clear()
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        """Lightning's hook, after a run that ended well."""
        super().teardown(stage)
        self.critic.restore()

    def on_train_start(self) -> None:
        """Lightning's hook."""
        super().on_train_start()
        if not self._rehearses:
            warn_of_an_endless_warm_up(self.critic_warmup_steps, self.trainer.estimated_stepping_batches)

    def on_train_end(self) -> None:
        """Lightning's hook."""
        self._flat_iterations.finish()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Lightning's hook: once the policy is too far off no update is made; in the warm-up it does not move."""
        too_far = self._leads_too_far()
        self._steps_learned += self._learns and not too_far
        super().on_before_optimizer_step(optimizer)
        self._old_kl.clear()
        if too_far:
            self.halted = True
            self.zero_grad()
        elif self.warms_up:
            for parameter in self.policy_parameters():
                parameter.grad = None

    def step_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """As in the parent, with those of the critic."""
        own = {
            "epochs_done": self._steps_learned / self.steps_per_generation,
            "critic_learning_rate": self.trainer.optimizers[0].param_groups[-1]["lr"],
        }
        return super().step_figures(means) | {name: torch.tensor(value) for name, value in own.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: with how far the iteration has come, and the moments of the scores so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {
            "critic": self.critic.kind,
            "halted": self.halted,
            "steps_learned": self._steps_learned,
            "score_moments": astuple(self.score_moments),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook.

        Raises:
            UserError: the checkpoint is of another model or kind of run.
        """
        saved = checkpoint.get("ppo")
        if saved is None:
            raise UserError("the checkpoint is of a run without a critic; --resume continues a run of the same trainer")
        if saved["critic"] != self.critic.kind:
            raise UserError(
                f"a run can only be resumed with the same critic: the checkpoint has {saved['critic']}, this run "
                f"{self.critic.kind}; give --critic={saved['critic']}"
            )
        super().on_load_checkpoint(checkpoint)
        self.halted, self._steps_learned = saved["halted"], saved["steps_learned"]
        self.score_moments = Moments(*saved["score_moments"])

    def _leads_too_far(self) -> bool:
        if self.target_kl is None or not self._old_kl:
            return False
        own = float(torch.stack(self._old_kl).mean())
        kl = over_ranks(self.trainer, own, "sum") / self.trainer.world_size
        return update_went_too_far(kl, self.target_kl)

    def _frozen_states(self, batch: Minibatch) -> Tensor | None:
        """The policy's states without gradient, where the critic reads them."""
        if not self.critic.shares_states:
            return None
        with torch.no_grad():
            return causal_lm.hidden_states(self.model, batch.batch)


def untouched(parameters: Sequence[nn.Parameter]) -> Tensor:
    """0, with a gradient of 0 in each: DDP waits for every parameter at every step."""
    return torch.stack([0 * p.flatten()[0] for p in parameters]).sum()


USUAL = ("learning_rate", "num_generations", "num_iterations")
"""Keywords of ``OnPolicyTrainer`` that have another default here."""
