"""Reward models from preference pairs: the Bradley-Terry likelihood of which answer is the better one."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relax.data.batching.epoch import PlannedBatches
from relax.data.pairs import PairBatch, PairDataset, collate_pairs
from relax.data.rows import Rows
from relax.losses.preference import (
    CALIBRATION_BINS,
    bradley_terry_loss,
    calibration_error,
    calibration_gaps,
    wins,
)
from relax.models import pad_id
from relax.sequence_classifier import check_score, scores
from trainers.batching import build_batches, check_data
from trainers.model_checks import prepare_model
from trainers.reward_settings import check_reading, prepare_pairs, warn_without_effect, with_padding
from trainers.settings import defaults_of
from trainers.trainer import Trainer

_GAPS = tuple(f"calibration_gap_{i}" for i in range(CALIBRATION_BINS))


class RewardTrainer(Trainer):
    """Train a sequence classifier of one output to score better answers higher.

    Args:
        model: transformers sequence classifier of one output (``relax.sequence_classifier.load_classifier``), or a PEFT
            model around one; further keywords as for ``Trainer``, where a sequence is a pair.
        tokenizer: the model's tokenizer, with the chat template that answers are shown in, if it has one.
        train_dataset: rows with ``chosen`` and ``rejected``, and perhaps ``prompt`` and ``tools``; or tokenized pairs.
        val_dataset: held-out rows.
        data_format: of the rows: preference.
        columns: our column names and the data's for them, such as {chosen: better}.
        max_length: tokens of prompt and answer together; a longer one loses its beginning.
        max_dropped_share: pairs whose two answers have the same tokens are dropped and counted; more of them than this
            share stop the run.
        margin: by how much a chosen answer should score above the rejected one.
        margin_column: the column that says so of each row (arXiv 2307.09288), in place of margin.
        centering_coef: factor of (chosen + rejected)^2, which keeps scores near 0 (arXiv 2312.09244); 0.01 is usual.
        tokenize_workers: processes that tokenize; default: the cores, where there are many rows.
        data_cache: folder that keeps tokenized rows for the next run, or none; default ~/.cache/relax.
        learning_rate: the highest rate of the schedule.
        config: further settings to record.

    Raises:
        UserError: rows that cannot be used, or a setting that cannot work.
    """

    bound = (*Trainer.bound, "centering_coef")
    pipeline_tag: ClassVar[str] = "text-classification"
    train_data: PairDataset
    val_data: PairDataset | None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: Rows | PairDataset,
        val_dataset: Rows | PairDataset | None = None,
        data_format: str | None = None,
        columns: dict[str, str] | None = None,
        max_length: int = 1024,
        max_dropped_share: float = 0.05,
        margin: float = 0.0,
        margin_column: str | None = None,
        centering_coef: float = 0.0,
        tokenize_workers: int | None = None,
        data_cache: str | None = None,
        learning_rate: float = 1e-5,
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        reading: dict[str, Any] = {
            "data_format": data_format,
            "columns": columns,
            "max_length": max_length,
            "max_dropped_share": max_dropped_share,
            "margin": margin,
            "margin_column": margin_column,
            "tokenize_workers": tokenize_workers,
            "data_cache": data_cache,
        }
        settings |= {"learning_rate": learning_rate}
        self.check(**reading, centering_coef=centering_coef, **settings)  # before rows are tokenized
        warn_without_effect(reading, defaults_of(RewardTrainer), train_dataset, val_dataset)
        if settings.get("compile_loss") is not None:
            warnings.warn("--compile_loss has no effect: a score needs no softmax over the vocabulary", stacklevel=2)
        pairs = prepare_pairs(train_dataset, tokenizer, reading, "training data")
        held_out = None if val_dataset is None else prepare_pairs(val_dataset, tokenizer, reading, "validation data")
        super().__init__(
            model,
            with_padding(model, tokenizer, pairs, held_out),
            train_dataset=pairs,
            val_dataset=held_out,
            config=reading | {"centering_coef": centering_coef} | dict(config or {}),
            **settings,
        )
        self.centering_coef = centering_coef
        self._adds_to_likelihood = bool(centering_coef or pairs.margins.any())

    @classmethod
    def check(cls, **settings: Any) -> None:
        """As ``Trainer.check``."""
        parameters = inspect.signature(RewardTrainer).parameters
        own = defaults_of(RewardTrainer) | {name: value for name, value in settings.items() if name in parameters}
        check_reading(own)
        others = {name: value for name, value in settings.items() if name not in parameters}
        super().check(learning_rate=own["learning_rate"], **others)

    # Data

    def prepare(self) -> bool:
        """As ``Trainer.prepare``, for a model that scores.

        Raises:
            UserError: its score is not read at the last token, it cannot be exported, or not be packed where it must.
        """
        return prepare_model(self, check_score)

    def longest_row(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(data.longest_answer for data in (self.train_data, self.val_data) if data is not None)

    def build_batches(self, *, packed: bool) -> PlannedBatches:
        """Micro-batches of pairs.

        Raises:
            UserError: a pair, padded, is too long for a budget of tokens.
        """
        self.train_data = replace(self.train_data, padded=not packed)
        self.val_data = None if self.val_data is None else replace(self.val_data, padded=not packed)
        check_data(self)
        batches = build_batches(self, packed=packed)
        assert isinstance(batches, PlannedBatches), "pairs are at hand"
        collate = partial(collate_pairs, packed=packed, pad_id=pad_id(self.tokenizer))
        return replace(batches, builder=replace(batches.builder, collate=collate))

    # One step

    def compute_loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective, a mean over the pairs of the whole optimizer step; its ``nll`` where it is more than that.

        Beside them: accuracy (ties count half), reward_margin (chosen - rejected), chosen_reward, rejected_reward, and
        the parts of ``calibration_error``. In evaluation mode the objective is the nll.
        """
        chosen, rejected = scores(self.model, batch).chunk(2)
        differences = (chosen - rejected).detach()
        weights = batch.weights.to(chosen.dtype) * (batch.step_micro_batches / batch.step_weight)
        nll = bradley_terry_loss(chosen, rejected, torch.zeros_like(chosen))
        losses = nll
        if self.training and self._adds_to_likelihood:
            losses = bradley_terry_loss(chosen, rejected, batch.margins, self.centering_coef)
        of_pairs = {
            "accuracy": wins(differences),
            "reward_margin": differences,
            "chosen_reward": chosen.detach(),
            "rejected_reward": rejected.detach(),
            **({"nll": nll.detach()} if self._adds_to_likelihood else {}),
        }
        metrics = {name: (weights * values).sum() for name, values in of_pairs.items()}
        gaps = calibration_gaps(differences, weights)
        return (weights * losses).sum(), metrics | dict(zip(_GAPS, gaps.unbind(), strict=True))

    @torch.no_grad()
    def row_losses(self, batch: PairBatch) -> dict[int, float]:
        """The loss of each pair of ``batch``, by its number in the data set."""
        chosen, rejected = scores(self.model, batch).chunk(2)
        losses = bradley_terry_loss(chosen, rejected, batch.margins, self.centering_coef)
        return dict(zip(batch.rows, losses.tolist(), strict=True))

    def step_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the calibration error of the step's pairs."""
        return _with_calibration_error(means)

    def validation_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same of all held-out pairs."""
        return _with_calibration_error(means)


def _with_calibration_error(means: dict[str, Tensor]) -> dict[str, Tensor]:
    figures = {name: value for name, value in means.items() if name not in _GAPS}
    return figures | {"calibration_error": calibration_error(torch.stack([means[name] for name in _GAPS]))}
