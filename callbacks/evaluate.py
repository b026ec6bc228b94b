"""How well the policy answers held-out prompts while it is trained: greedy accuracy, mean rewards, pass@k.

Not Lightning's validation, which computes the loss of given answers: here the policy writes its own.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import nn

from relax.data.prompts import PromptDataset, encode_prompts
from relax.data.rows import Rows
from relax.errors import UserError
from relax.evaluation import Exam
from relax.evaluation.exam import check_correct, check_samples
from relax.lightning_loop import step_completed, training_ends
from relax.protocols import HasSampling, HasTokenizer, ReadsPrompts, WatchesEvaluation
from relax.ranks import gathered, share
from relax.rewards import Rewards, build_rewards
from relax.rewards.specs import Entry
from relax.rollout import PolicyEngine, Sampling, StopStrings
from relax.rollout.texts import end_of_text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NEW_TOKENS = 256
"""Of an answer, where neither the user nor the module says how long it may be."""


class Evaluate(L.Callback):
    """Asks the policy held-out prompts: before the first optimizer step, after every so many, and after the last.

    Logs ``val/accuracy`` (the share of greedy answers that are right: they score at least 1 and were not cut off),
    ``val/reward``, ``val/reward_NAME``, ``val/truncated``, ``val/completion_length`` and, of ``num_samples`` sampled
    answers, ``val/pass@K`` (arXiv 2107.03374, unbiased); at the number of optimizer steps done. The prompts are
    divided over the ranks; the figures do not depend on how many there are, and training does not notice. Warns once
    where answers score above 0, but none scores 1.

    Place it before the callbacks that are to see the figures. Lightning places `Checkpoint` behind it, whose best may
    be chosen by one of them. A run that another callback stops early is not evaluated once more at its end.

    Args:
        rows: prompts in any format that has them, written as those that the module learns from (its system prompt, its
            ``columns``, ...), or encoded by ``relax.data.prompts``.
        rewards: what scores the answers, written as ``--rewards``.
        every_n_steps: optimizer steps.
        num_samples: answers of each prompt that are sampled for pass@k; 1: none, only the greedy one.
        ks: of pass@k, none above ``num_samples``.
        max_prompts: of more, so many are asked, evenly spaced.
        correct: the reward function that says whether an answer is right; None: the first.
        sampling: how long answers get, where they end, how they are sampled; None: as the module's, or up to 256
            tokens. Without stop tokens it gets the model's end of text.
        stop_strings: texts that end an answer, for a ``sampling`` of your own.
        rollout_memory: see ``PolicyEngine``.
        seed: of the sampled answers.

    Raises:
        UserError: a setting out of range; at the start: rows without prompts or without what a reward needs, a module
            without ``model`` and ``tokenizer``.
    """

    def __init__(
        self,
        rows: Rows | PromptDataset,
        rewards: Rewards | Entry | Sequence[Entry],
        *,
        every_n_steps: int,
        num_samples: int = 1,
        ks: Sequence[int] = (1,),
        max_prompts: int | None = None,
        correct: str | None = None,
        sampling: Sampling | None = None,
        stop_strings: Sequence[str] = (),
        rollout_memory: int | str | None = None,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 1 or (max_prompts is not None and max_prompts < 1):
            raise UserError(
                f"every_n_steps and max_prompts of Evaluate must be above 0, got {every_n_steps} and {max_prompts}"
            )
        check_samples(num_samples, ks)
        self.rewards = rewards if isinstance(rewards, Rewards) else build_rewards(rewards)
        check_correct(self.rewards, correct)
        self.rows, self.every_n_steps, self.max_prompts = rows, every_n_steps, max_prompts
        self.sampling, self.stop_strings, self.rollout_memory = sampling, tuple(stop_strings), rollout_memory
        self._asking: dict[str, Any] = {"num_samples": num_samples, "ks": tuple(ks), "correct": correct, "seed": seed}
        self._exam: Exam | None = None
        self._engine: PolicyEngine | None = None
        self._warned = False
        self._step = -1  # of the latest figures
        self._figures: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return {"step": self._step, "figures": self._figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        self._step, self._figures = state_dict["step"], state_dict["figures"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse at once what would fail later."""
        if stage != "fit":
            return
        self._step, self._figures, self._engine = -1, {}, None  # a checkpoint is read after this
        model, tokenizer = _policy(pl_module)
        prompts = self.rows
        if not isinstance(prompts, PromptDataset):
            reading = pl_module.reading if isinstance(pl_module, ReadsPrompts) else {}
            prompts = encode_prompts(prompts, tokenizer, where="evaluation data", **reading)
        self.rewards.check_columns(prompts[0].row.keys())
        sampling, strings = self._sampling(pl_module, model, tokenizer)
        self._exam = Exam(prompts, self.rewards, sampling, strings, **self._asking)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run has the figures that the one before had."""
        trainer.callback_metrics.update(_tensors(self._figures))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first optimizer step; not in ``on_train_start``, where others are not ready for figures yet."""
        if trainer.global_step == 0 and self._step < 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """After an optimizer step, if it is time to."""
        due = trainer.global_step % self.every_n_steps == 0 or training_ends(trainer)
        if due and step_completed(trainer):
            self._evaluate(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model, and of the rewards' processes."""
        self._exam = self._engine = None
        self.rewards.close()

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask on every rank, tell everyone who listens."""
        started = time.perf_counter()
        figures = {f"val/{name}": value for name, value in self._ask(trainer, pl_module).items()}
        seconds = time.perf_counter() - started
        self._step, self._figures = trainer.global_step, figures
        # Not pl_module.log: Lightning hands that on at logged steps only, and before the first one at a later one.
        trainer.callback_metrics.update(_tensors(figures))
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)
        for listener in (*trainer.callbacks, pl_module):  # type: ignore[attr-defined]
            if isinstance(listener, WatchesEvaluation):
                listener.on_evaluation_end(trainer, pl_module, figures, seconds)

    def _ask(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        assert self._exam is not None, "setup comes first"
        model, tokenizer = _policy(pl_module)
        total = len(self._exam.prompts)
        count = min(total, self.max_prompts or total)
        numbers = [place * total // count for place in share(count, trainer)]
        with trainer.precision_plugin.forward_context():  # the policy computes as it does when it is trained
            self._engine = self._engine or PolicyEngine(model, memory=self.rollout_memory)
            values = self._exam.ask(self._engine, tokenizer, numbers)
        everything = torch.cat(gathered(trainer, values))
        figures = self._exam.figures(everything)
        if trainer.is_global_zero:
            self._warn_of_grades(self._exam.grader, self._exam.best_grade(everything))
        return figures

    def _warn_of_grades(self, name: str, best: float) -> None:
        """Once: partial scores are no right answers."""
        if self._warned or not 0 < best < 1:
            return
        self._warned = True
        warnings.warn(
            f"no evaluated answer scores 1 by the reward {name!r}, the best {best:.3g}; as long as none does, "
            "val/accuracy is 0 and tells no checkpoint from another: if none ever can, give --monitor=val/reward",
            stacklevel=4,
        )

    def _sampling(
        self, pl_module: L.LightningModule, model: nn.Module, tokenizer: "PreTrainedTokenizerBase"
    ) -> tuple[Sampling, Sequence[str]]:
        """The sampling, and the strings that it stops at."""
        if self.sampling is None and isinstance(pl_module, HasSampling):
            return pl_module.sampling, pl_module.stop_strings
        sampling = self.sampling or Sampling(MAX_NEW_TOKENS)
        if not sampling.stop_ids:
            sampling = replace(sampling, stop_ids=end_of_text_ids(model, tokenizer))
        if self.stop_strings and sampling.stop_when is None:
            sampling = replace(sampling, stop_when=StopStrings(tokenizer, self.stop_strings))
        return sampling, self.stop_strings


def _policy(pl_module: L.LightningModule) -> tuple[nn.Module, "PreTrainedTokenizerBase"]:
    model = dict(pl_module.named_children()).get("model")
    if model is None or not isinstance(pl_module, HasTokenizer):
        raise UserError(f"Evaluate needs a module with model and tokenizer, {type(pl_module).__name__} lacks them")
    return model, pl_module.tokenizer


def _tensors(figures: dict[str, float]) -> dict[str, torch.Tensor]:
    """As Lightning keeps figures, in full precision."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
