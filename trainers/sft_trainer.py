"""Supervised fine-tuning: cross-entropy on the tokens the loss mask names."""

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from relax import causal_lm, checks
from relax.data.batches import Batch
from relax.data.chat import TrainOn
from relax.data.encoding import tokenize_rows
from relax.data.sources import Rows
from relax.data.tokenized import TokenizedDataset
from relax.errors import UserError
from relax.losses import token_logprobs, weighted_logprob_sum
from trainers.trainer import Trainer


class SFTTrainer(Trainer):
    """Fine-tune a causal language model on examples.

    Args:
        model: as for ``Trainer``; so are all further keywords.
        tokenizer: the model's tokenizer, with the chat template that ``messages`` rows are rendered with.
        train_dataset: rows with ``text``, ``prompt`` and ``completion``, or ``messages``; or tokenized ones.
        val_dataset: held-out rows of the same kind.
        max_length: tokens of a row; longer rows are cut at the end and counted. None leaves them whole.
        train_on: completion trains completions (of ``messages``: all assistant turns), last only the last assistant
            turn, all every token.
        max_dropped_share: rows that are left without a trained token are dropped and counted; more of them than this
            share stop the run.
        config: further settings to record.

    Raises:
        UserError: rows that cannot be used, or a setting that cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: Rows | TokenizedDataset,
        val_dataset: Rows | TokenizedDataset | None = None,
        max_length: int | None = 1024,
        train_on: TrainOn = "completion",
        max_dropped_share: float = 0.05,
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        chosen: dict[str, Any] = {
            "max_length": max_length,
            "train_on": train_on,
            "max_dropped_share": max_dropped_share,
        }
        self.check(**chosen, **settings)  # before the rows are tokenized, which may take long

        def tokenized(rows: Rows | TokenizedDataset, where: str) -> TokenizedDataset:
            if isinstance(rows, TokenizedDataset):
                return rows
            return tokenize_rows(rows, tokenizer, where=where, **chosen)

        held_out = None if val_dataset is None else tokenized(val_dataset, "validation data")
        super().__init__(
            model,
            tokenizer,
            train_dataset=tokenized(train_dataset, "training data"),
            val_dataset=held_out,
            config=chosen | dict(config or {}),
            **settings,
        )

    @classmethod
    def check(
        cls,
        *,
        max_length: int | None = None,
        train_on: TrainOn = "completion",
        max_dropped_share: float = 0.05,
        **settings: Any,
    ) -> None:
        """As ``Trainer.check``."""
        checks.between(2, math.inf, max_length=max_length)
        checks.one_of(get_args(TrainOn), train_on=train_on)
        checks.between(0, 1, max_dropped_share=max_dropped_share)
        super().check(**settings)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """-sum_t log p(y_t) / targets of the whole optimizer step; entropy (nats) and token accuracy likewise.

        Raises:
            UserError: the batch has no target.
        """
        if not len(batch.targets):
            raise UserError(f"a batch needs a trainable token, rows {batch.rows} have none; check their loss masks")
        weights = batch.weights * (batch.step_micro_batches / batch.step_targets)
        logprob_sum, tokens = weighted_logprob_sum(
            causal_lm.hidden_states(self.model, batch),
            causal_lm.language_head(self.model),
            batch.targets,
            weights,
            compiled=self.compiles_loss,
        )
        metrics = {"entropy": (weights * tokens.entropy).sum(), "token_accuracy": (weights * tokens.correct).sum()}
        return -logprob_sum, metrics

    @torch.no_grad()
    def row_losses(self, batch: Batch) -> dict[int, float]:
        """The summed loss of each row of ``batch``, by its number in the data set."""
        hidden, head = causal_lm.hidden_states(self.model, batch), causal_lm.language_head(self.model)
        nll = -token_logprobs(hidden, head, batch.targets).logprobs
        sums = nll.new_zeros(len(batch.rows)).index_add(0, batch.owners, nll)
        return dict(zip(batch.rows, sums.tolist(), strict=True))

    def validation_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss, token accuracy, entropy, and perplexity = exp(loss)."""
        return means | {"perplexity": means["loss"].exp()}
