"""Supervised fine-tuning: cross-entropy on the tokens the loss mask names."""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relax import causal_lm
from relax.data.audit import Audit
from relax.data.batching.batches import Batch
from relax.data.chat.learning import TrainOn
from relax.data.rows import Rows
from relax.data.sources.streams import RowStream
from relax.data.tokens.tokenized import TokenizedDataset
from relax.data.tokens.truncation import Truncation
from relax.errors import UserError
from relax.experts import check_balance_loss, experts_per_token, router_coefficient
from relax.losses import NLL, TOKEN_LOSSES, TokenLoss, balance_losses, token_logprobs, weighted_loss_sum
from relax.neftune import noisy_embeddings
from relax.sequences import sequence_members
from trainers.batching import audit_batches
from trainers.settings import defaults_of
from trainers.sft_settings import (
    check_objective,
    check_reading,
    prepare_held_out,
    prepare_rows,
    warn_without_effect,
)
from trainers.trainer import Trainer


class SFTTrainer(Trainer):
    """Fine-tune a causal language model on examples.

    Args:
        model: as for ``Trainer``; so are all further keywords.
        tokenizer: the model's tokenizer, with the chat template that ``messages`` rows are rendered with.
        train_dataset: rows of one of the formats of ``relax.data.FORMATS``, a stream of them, or tokenized ones.
        val_dataset: held-out rows.
        data_format: of the rows, by name; default: recognised by the columns of the first row.
        columns: our column names and the data's for them, such as {completion: chosen}.
        weight_column: the column with each row's weight in the loss.
        max_length: tokens of a row; None leaves rows whole.
        truncation: of longer rows: end or start is cut off and counted, drop leaves the row out, error stops.
        train_on: completion trains completions (of ``messages``: all assistant turns), last only the last assistant
            turn, all every token.
        max_dropped_share: rows that are left without a trained token are dropped and counted; more of them than this
            share stop the run.
        tokenize_workers: processes that tokenize; default: the cores, where there are many rows.
        data_cache: folder that keeps tokenized rows for the next run, or none; default ~/.cache/relax.
        shuffle_buffer: rows of a stream that are shuffled together; 1 keeps the stream's order.
        loss: of a token: nll is -log p; dft multiplies it by p as a constant (dynamic fine-tuning, arXiv 2508.05629).
        label_smoothing: probability spread evenly over the vocabulary (arXiv 1512.00567); with loss=nll.
        z_loss: factor of log^2 Z, Z the softmax's normalizer; 1e-4 in PaLM (arXiv 2204.02311).
        neftune_alpha: noise on the input embeddings, 5 to 15 (NEFTune, arXiv 2310.05914); None adds none.
        router_aux_loss_coef: factor of the loss that balances a mixture of experts, sequence by sequence; default: that
            of the model's configuration where it asks for the loss (output_router_logits), else 0.
        config: further settings to record.

    Raises:
        UserError: rows that cannot be used, or a setting that cannot work.
    """

    bound = (*Trainer.bound, "loss", "label_smoothing", "z_loss", "neftune_alpha", "router_aux_loss_coef")

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: Rows | RowStream | TokenizedDataset,
        val_dataset: Rows | RowStream | TokenizedDataset | None = None,
        data_format: str | None = None,
        columns: dict[str, str] | None = None,
        weight_column: str | None = None,
        max_length: int | None = 1024,
        truncation: Truncation = "end",
        train_on: TrainOn = "completion",
        max_dropped_share: float = 0.05,
        tokenize_workers: int | None = None,
        data_cache: str | None = None,
        shuffle_buffer: int = 10_000,
        loss: Literal["nll", "dft"] = "nll",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        neftune_alpha: float | None = None,
        router_aux_loss_coef: float | None = None,
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        reading: dict[str, Any] = {
            "data_format": data_format,
            "columns": columns,
            "weight_column": weight_column,
            "max_length": max_length,
            "truncation": truncation,
            "train_on": train_on,
            "max_dropped_share": max_dropped_share,
            "tokenize_workers": tokenize_workers,
            "data_cache": data_cache,
            "shuffle_buffer": shuffle_buffer,
        }
        objective: dict[str, Any] = {
            "loss": loss,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "neftune_alpha": neftune_alpha,
            "router_aux_loss_coef": router_aux_loss_coef,
        }
        self.check(**reading, **objective, **settings)  # before the rows are tokenized, which may take long
        warn_without_effect(reading, defaults_of(SFTTrainer), train_dataset, val_dataset)
        coefficient = router_coefficient(model, router_aux_loss_coef)
        super().__init__(
            model,
            tokenizer,
            train_dataset=prepare_rows(train_dataset, tokenizer, reading, settings.get("seed", 0)),
            val_dataset=prepare_held_out(val_dataset, tokenizer, reading),
            config=reading | objective | dict(config or {}),
            **settings,
        )
        self.token_loss = TokenLoss(TOKEN_LOSSES[loss], label_smoothing, z_loss)
        self.neftune_alpha, self.router_aux_loss_coef = neftune_alpha, coefficient

    @classmethod
    def check(cls, **settings: Any) -> None:
        """As ``Trainer.check``."""
        parameters = inspect.signature(SFTTrainer).parameters
        own = defaults_of(SFTTrainer) | {name: value for name, value in settings.items() if name in parameters}
        check_reading(own)
        check_objective(own)
        super().check(**{name: value for name, value in settings.items() if name not in parameters})

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        super().setup(stage)
        if self.router_aux_loss_coef and stage == "fit":
            check_balance_loss(self.model)

    def audit(self) -> Audit:
        """What is trained on, as micro-batches lay it out; of a stream, the first rows. Inside a run only."""
        return audit_batches(self._batches, self.tokenizer, seed=self.seed)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective; its ``nll`` where it is more than that, entropy (nats), token accuracy, and ``router_loss``.

        Those of tokens are sums over targets x weight of their row / sum of the weights of the whole optimizer step;
        the router's is a mean over its sequences. In evaluation mode the objective is the nll.

        Raises:
            UserError: the batch has no target.
        """
        if not len(batch.targets):
            raise UserError(f"a batch needs a trainable token, rows {batch.rows} have none; check their loss masks")
        balances = self.training and self.router_aux_loss_coef > 0
        with self._noise(batch):
            output = causal_lm.forward(self.model, batch, router_logits=balances)
        weights = batch.weights * (batch.step_micro_batches / batch.step_weight)
        token_loss = self.token_loss if self.training else NLL
        head = causal_lm.language_head(self.model)
        objective, tokens = weighted_loss_sum(
            output.hidden, head, batch.targets, weights, token_loss, compiled=self.compiles_loss
        )
        metrics = {"entropy": (weights * tokens.entropy).sum(), "token_accuracy": (weights * tokens.correct).sum()}
        if token_loss != NLL or balances:
            metrics["nll"] = -(weights * tokens.logprobs).sum()
        if output.router_logits is not None:
            balance = self._balance(batch, output.router_logits)
            objective = objective + self.router_aux_loss_coef * balance
            metrics["router_loss"] = balance.detach()
        return objective, metrics

    def _noise(self, batch: Batch) -> AbstractContextManager[None]:
        if self.neftune_alpha and self.training:
            return noisy_embeddings(self.model, self.neftune_alpha, batch)
        return nullcontext()

    def _balance(self, batch: Batch, router_logits: tuple[Tensor, ...]) -> Tensor:
        """The mean over the sequences of the whole optimizer step, as far as they are in this micro-batch."""
        losses = balance_losses(router_logits, sequence_members(batch), experts_per_token(self.model))
        only_fills_up = batch.num_tokens == 0
        return losses.sum() * (0 if only_fills_up else batch.step_micro_batches / batch.step_sequences)

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
