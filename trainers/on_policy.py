"""On-policy training: prompts -> rollouts -> scores -> experience -> minibatches. One Lightning epoch is one iteration.

How scores become something to learn from, and the loss, are the subclass's: ``collect`` and ``compute_loss``.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from torch import Tensor, nn

from relax import causal_lm, checks
from relax.data.batching.epoch import BatchBuilder
from relax.data.examples import Row
from relax.data.prompts import PromptDataset
from relax.data.rows import Rows
from relax.dropout import has_dropout
from relax.errors import UserError
from relax.experience import Experience, Minibatch
from relax.lightning_loop import brings_own_loader
from relax.losses import token_logprobs
from relax.ranks import gathered
from relax.rewards import Rewards, build_rewards
from relax.rewards.specs import Entry
from relax.rollout import PolicyEngine, RolloutEngine
from trainers.advice import warn_of_a_loader_of_prompts, warn_of_dropout, warn_of_few_prompts
from trainers.batching import collation
from trainers.model_checks import check_whole_weights, prepare_reference
from trainers.on_policy_settings import NOT_ON_POLICY, build_sampling, check_longest, check_rollouts, frozen_reference
from trainers.prompting import (
    GivenPrompts,
    PromptSource,
    WalkedPrompts,
    prepare_prompts,
    prompts_of_batch,
    rows_of,
)
from trainers.rollout_batches import RolloutBatches, layout, layout_of_one_update, minibatches
from trainers.rollout_figures import rollout_figures
from trainers.settings import defaults_of
from trainers.step_watch import StepWatch
from trainers.trainer import Trainer


class OnPolicyTrainer(Trainer):
    """A ``Trainer`` whose data are written by the policy itself, with its latest weights.

    Args:
        model: as for ``Trainer``; so are all further keywords.
        tokenizer: the model's tokenizer.
        train_dataset: rows with prompts; None where ``lightning.Trainer.fit`` is given a loader of lists of rows.
        rewards: reward functions, or what ``relax.rewards.build_rewards`` makes them from.
        learning_rate: as for ``Trainer``; about ten times as much for a LoRA adapter.
        schedule: as for ``Trainer``.
        batch_size: completions of one optimizer step, over all devices.
        num_generations: completions of each prompt.
        steps_per_generation: optimizer steps of one pass over the completions of an iteration.
        num_iterations: passes over the completions of an iteration.
        data_format: of the rows, by name; default: recognised by the columns of the first row.
        columns: our column names and the data's for them, such as {prompt: question}.
        system_prompt: a message to put before each prompt.
        prompts_as_chat: make a user message of a prompt that is text.
        max_prompt_length: tokens; longer prompts are dropped and counted.
        max_dropped_share: more dropped prompts than this share stop the run.
        max_new_tokens: tokens of a completion, at most.
        min_new_tokens: no end of text among the first so many tokens.
        temperature: divides the logits, in sampling and in training.
        top_k: sample among the k most likely tokens.
        top_p: sample among the most likely tokens that together have this mass.
        min_p: sample among tokens at least this fraction as likely as the most likely one.
        repetition_penalty: above 1, tokens of prompt and completion get less likely.
        stop_strings: texts that end a completion, beside the model's end of text.
        stop_token_ids: tokens that do; default: those of the model and the tokenizer.
        rollout_memory: for keys and values while sampling, in tokens or as a size such as 4GB.
        mask_truncated: do not learn from completions that were cut off (overlong filtering, arXiv 2503.14476).
        kl_coef: factor of the KL penalty that keeps the policy near the reference; 0 needs no reference.
        kl_estimator: k1, k2 or k3 (Schulman 2020).
        reference: the model to stay near; default: the base under an adapter, else a copy of ``model``.
        config: further settings to record.

    Attributes:
        kl_coef: may be set at any time, unless it was 0 at first; acts from the next micro-batch on, or where the
            penalty is part of the rewards, from the next iteration on.
        compares: there is a reference.
        experience: the current iteration's, of all ranks; None before the first.
        reference: a frozen model; None where there is no KL penalty, or an adapter that can be switched off instead.
        iteration: its number, counted from 0.
        halted: nothing more is learned in it.
        engine: what completions are sampled by.
        sampling: how.
        rewards: what they are scored with.
        reading: keywords of ``encode_prompts``: how rows become prompts.

    Raises:
        UserError: rows that cannot be used, or a setting that cannot work.
    """

    bound: ClassVar[tuple[str, ...]] = (
        *(name for name in Trainer.bound if name not in NOT_ON_POLICY),
        *("num_generations", "steps_per_generation", "num_iterations", "max_new_tokens", "min_new_tokens"),
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop_strings", "stop_token_ids"),
        *("mask_truncated", "kl_estimator"),
    )

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: Rows | PromptDataset | None = None,
        rewards: Rewards | Entry | Sequence[Entry],
        learning_rate: float = 1e-6,
        schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant",
        batch_size: int = 128,
        num_generations: int = 8,
        steps_per_generation: int = 1,
        num_iterations: int = 1,
        data_format: str | None = None,
        columns: dict[str, str] | None = None,
        system_prompt: str | None = None,
        prompts_as_chat: bool = False,
        max_prompt_length: int | None = 1024,
        max_dropped_share: float = 0.05,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop_strings: list[str] | None = None,
        stop_token_ids: list[int] | None = None,
        rollout_memory: int | str | None = None,
        mask_truncated: bool = False,
        kl_coef: float = 0.0,
        kl_estimator: str = "k3",
        reference: nn.Module | None = None,
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        given = locals()
        own = {name: given[name] for name in defaults_of(OnPolicyTrainer).keys() - NOT_PLAIN}
        check_rollouts(own, settings)  # before the prompts are tokenized, which may take long
        scorers = rewards if isinstance(rewards, Rewards) else build_rewards(rewards)
        reading = {name: own[name] for name in ("data_format", "columns", "system_prompt", "max_dropped_share")}
        reading |= {"as_chat": prompts_as_chat, "max_length": max_prompt_length}
        prompts = None if train_dataset is None else prepare_prompts(train_dataset, tokenizer, scorers, reading)
        super().__init__(
            model,
            tokenizer,
            train_dataset=prompts,
            learning_rate=learning_rate,
            schedule=schedule,
            batch_size=batch_size,
            config={name: value for name, value in own.items() if name not in RETOLD} | dict(config or {}),
            **settings,
        )
        self.prompts, self.rewards, self.reading = prompts, scorers, reading
        self.num_generations, self.steps_per_generation = num_generations, steps_per_generation
        self.num_iterations, self.mask_truncated = num_iterations, mask_truncated
        self.temperature, self.stop_strings, self.rollout_memory = temperature, stop_strings or [], rollout_memory
        self.compares, self._kl_coef, self.kl_estimator = kl_coef > 0, kl_coef, kl_estimator
        self.sampling = build_sampling(own, model, tokenizer)
        check_longest(self)
        warn_of_few_prompts(self)
        # In a tuple, where torch does not look: it is neither trained, nor saved, nor ever in training mode.
        self._reference = (frozen_reference(model, reference, kl_coef),)
        # Now: later it may have another precision, or follow the policy.
        self._reference_digest = None if self.reference is None else causal_lm.frozen_digest(self.reference)
        self.engine: RolloutEngine
        self.experience: Experience | None = None
        self.iteration, self._next_prompt = -1, 0
        self.sampling_figures: dict[str, float] = {}
        self.step_watch = StepWatch()
        self._learns = False  # the optimizer step under way has a gradient
        self.halted = False

    @classmethod
    def check(cls, **settings: Any) -> None:
        """As ``Trainer.check``."""
        defaults = defaults_of(OnPolicyTrainer)
        own = defaults | {name: value for name, value in settings.items() if name in defaults}
        check_rollouts(own, settings)
        others = {name: value for name, value in settings.items() if name not in defaults}
        super().check(**{name: own[name] for name in RETOLD}, **others)

    @property
    def kl_coef(self) -> float:
        """Factor of the KL penalty."""
        return self._kl_coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        checks.between(0, 1000, kl_coef=value)
        if value and not self.compares:
            raise UserError(f"kl_coef={value} needs a reference model; construct the trainer with a kl_coef above 0")
        self._kl_coef = value

    @property
    def reference(self) -> nn.Module | None:
        """The frozen model of the KL penalty, if there is one apart from the policy's base."""
        return self._reference[0]

    def _own_settings(self) -> dict[str, Any]:
        return {name: value for name, value in super()._own_settings().items() if name not in NOT_ON_POLICY}

    # What an iteration is made of

    @abstractmethod
    def collect(self, prompts: PromptSource) -> Experience:
        """Roll out, score, and say what is to be learned: one iteration's experience, the same on every rank."""

    def trained(self, experience: Experience) -> Tensor:
        """[S], bool: completions that are learned from; the others are in no denominator either."""
        truncated = experience.completions["truncated"]
        return ~truncated if self.mask_truncated else torch.ones_like(truncated)

    @abstractmethod
    def idle(self, experience: Experience) -> Tensor:
        """[S], bool: completions whose gradient is known to be 0, so that nothing need be computed for them."""

    @property
    def rereads(self) -> bool:
        """Whether the policy reads what it wrote once more, for log-probs that sampling does not give.

        It gives those that are trained on unless tokens were cut out of its distribution (top-k, top-p, ...).
        """
        plain = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
        return any(vars(self.sampling)[name] != value for name, value in plain.items())

    # Iterations

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts that an iteration learns from."""
        return self.batch_size * self.steps_per_generation // self.num_generations

    @property
    def usual_epochs(self) -> int:
        """Iterations that ask every prompt once."""
        return 1 if self.prompts is None else -(-len(self.prompts) // self.prompts_per_iteration)

    @property
    def beside_checkpoint(self) -> dict[str, Any]:
        """As in the parent; also the reference as it was at the start, and the rewards and their weights."""
        rewards = {reward.name: reward.weight for reward in self.rewards.functions}
        return super().beside_checkpoint | {"reference weights": self._reference_digest, "rewards": rewards}

    @property
    def rehearsed(self) -> str:
        """What a dry run trains on."""
        return "the first iteration"

    @property
    def builder(self) -> BatchBuilder:
        """How completions are cut and collated; inside a run only."""
        return self._batches.builder

    def longest_row(self) -> int:
        """Tokens of a prompt and its completion, at most."""
        longest = 0 if self.prompts is None else int(self.prompts.lengths.max())
        return longest + self.sampling.max_new_tokens

    def experience_of(self, iteration: int) -> Experience:
        """What the policy writes in an iteration: now, unless it is there already or a checkpoint brought it."""
        if self.experience is None or self.iteration != iteration:
            self.experience, self.iteration = None, iteration  # a checkpoint of a failed rollout must not hold the old
            assert self.prompts is not None, "setup refuses a run without prompts"
            prompts = WalkedPrompts(self.prompts, self.seed, self._next_prompt, self.prompts_per_iteration)
            with self.trainer.precision_plugin.forward_context():  # as in training, so that log-probs are the same
                self._begin(prompts)
            self._next_prompt = prompts.next
        assert self.experience is not None
        return self.experience

    def _begin(self, prompts: PromptSource) -> Experience:
        self.step_watch.seconds.clear()
        self.sampling_figures.clear()
        with torch.no_grad():
            self.experience = experience = self.collect(prompts)
        self.step_watch.start(rollout_figures(experience, self.step_watch.seconds) | self.sampling_figures)
        return experience

    def whole_update(self, rows: Sequence[Row] | Mapping[str, Any]) -> Minibatch:
        """From a batch of prompts to this rank's part of one fully on-policy update.

        For a loader of the user's own: ``lightning.Trainer(...).fit(module, loader_of_rows)``.

        Raises:
            UserError: a batch that is not of rows, or rows that cannot be used.
        """
        everywhere = [row for part in gathered(self.trainer, rows_of(rows)) for row in part]
        self.iteration = self.trainer.fit_loop.epoch_loop.total_batch_idx
        prompts = prompts_of_batch(everywhere, self.tokenizer, self.rewards, self.reading)
        experience = self._begin(GivenPrompts(prompts))
        builder = layout_of_one_update(self.builder, len(experience), self.trainer.world_size)
        batch = minibatches(self, experience, builder, passes=1, steps_per_pass=1)[0]
        self._note(batch)
        return batch.to(self.device)

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        check_whole_weights(self)
        self.experience, self.iteration, self._next_prompt = None, -1, 0  # a checkpoint, read later, may bring others
        if self.prompts is None and not brings_own_loader(self.trainer):
            raise UserError("train_dataset must be given, or a loader of prompts to lightning.Trainer.fit")
        if brings_own_loader(self.trainer):
            warn_of_a_loader_of_prompts(self.hparams)
        super().setup(stage)
        with self.trainer.precision_plugin.forward_context():
            engine = PolicyEngine(self.model, memory=self.rollout_memory)
        if self.prompts is not None:
            engine.check_longest(int(self.prompts.lengths.max()), self.sampling)
        self.engine = engine
        self.noisy = has_dropout(self.model)
        if self.noisy:
            warn_of_dropout()

    def build_batches(self, *, packed: bool) -> RolloutBatches:
        """The micro-batches of this rank."""
        if self.reference is not None:
            prepare_reference(self, self.reference, packed=packed)
        cut, collate = layout(self, padded=not packed), collation(self, packed=packed)
        return RolloutBatches(self, BatchBuilder(cut, self.global_rank, collate))

    def teardown(self, stage: str) -> None:
        """Lightning's hook, after a run that ended well."""
        super().teardown(stage)
        self.rewards.close()
        if self.reference is not None:
            causal_lm.restore_attention(self.reference)

    def train(self, mode: bool | None = None) -> Self:
        """As ``Trainer.train``; when a run ends, however it does, so do the processes of the rewards."""
        if mode is not None or self._running():
            return super().train(mode)
        try:
            return super().train()
        finally:
            self.rewards.close()

    def on_train_start(self) -> None:
        """Lightning's hook."""
        super().on_train_start()
        self.step_watch.start(self.step_watch.rollouts)  # for an experience that a checkpoint brought

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook."""
        super().on_train_batch_start(batch, batch_idx)
        if isinstance(batch, Minibatch):
            self._note(batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Lightning's hook: where nothing is to be learned, nothing moves, not even by momentum."""
        super().on_before_optimizer_step(optimizer)
        self.step_watch.forget_ratios()
        if not self._learns:
            self.zero_grad()  # an optimizer leaves out parameters without a gradient
        self._learns = False

    def on_evaluation_end(self, trainer: L.Trainer, pl_module: L.LightningModule, figures: Any, seconds: float) -> None:
        """Hook of ``callbacks.Evaluate``: its time is no part of the update's."""
        self.step_watch.pause(seconds)

    def _note(self, batch: Minibatch) -> None:
        """Whether the optimizer step learns something, and the tokens that it is computed on."""
        self._learns |= batch.learns and not self.halted
        self.step_watch.note_tokens(0 if self.halted else batch.num_tokens)

    @torch.no_grad()
    def row_losses(self, batch: Any) -> dict[int, float]:
        """The summed negative log-prob of each completion of a minibatch, by its number in the experience."""
        if not isinstance(batch, Minibatch):
            return {}
        hidden, head = causal_lm.hidden_states(self.model, batch.batch), causal_lm.language_head(self.model)
        nll = -token_logprobs(hidden, head, batch.batch.targets, temperature=self.temperature).logprobs
        return dict(zip(batch.rows, batch.segments.sums(nll).tolist(), strict=True))

    def step_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of the loss, of the rollouts, of the ratio, the KL coefficient, and the time it took."""
        figures = self.step_watch.figures(self.trainer) | {"kl_coef": torch.tensor(self.kl_coef)}
        if not self._learns:  # of what was not computed, entropy and the like are unknown, and not 0
            unknown = means.keys() - {"loss"} | {"ratio_min", "ratio_max"}
            return {name: value for name, value in (means | figures).items() if name not in unknown}
        return means | figures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: with the experience that is being learned from."""
        super().on_save_checkpoint(checkpoint)
        bookmark = checkpoint["bookmark"]
        under_way = bookmark is not None and bookmark["position"] < self._batches.micro_batches
        experience = self.experience if under_way and bookmark["epoch"] == self.iteration else None
        checkpoint["rollouts"] = {
            "iteration": self.iteration,
            "next_prompt": self._next_prompt,
            "experience": None if experience is None else experience.state(),
            "figures": self.step_watch.rollouts,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook.

        Raises:
            UserError: the checkpoint is of another model or kind of run.
        """
        super().on_load_checkpoint(checkpoint)
        if "rollouts" not in checkpoint:
            raise UserError("the checkpoint is of a run without rollouts; --resume continues a run of the same trainer")
        saved = checkpoint["rollouts"]
        self._next_prompt, self.step_watch.rollouts = saved["next_prompt"], saved["figures"]
        if saved["experience"] is not None:
            self.experience, self.iteration = Experience.from_state(saved["experience"]), saved["iteration"]


RETOLD = ("learning_rate", "schedule", "batch_size")
"""Keywords of ``Trainer`` that have another default or meaning here."""
NOT_PLAIN = {"train_dataset", "reference", "config"}
"""Keywords that no file of settings can hold."""
