"""Settings of the reward trainer: which values cannot work, and how pairs are made ready with them."""

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from relax import causal_lm, checks
from relax.data.pairs import PairDataset, tokenize_pairs
from relax.data.rows import Rows
from relax.data.sources.dataset_rows import named
from relax.data.sources.streams import RowStream
from relax.data.tokens.token_cache import default_folder
from relax.data.tokens.tokenized import TokenizedDataset
from relax.errors import UserError
from relax.rewards.reading import AnswerReader
from relax.sequence_classifier import padding_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_reading(own: Mapping[str, Any]) -> None:
    """How pairs are read, and what is minimised.

    Raises:
        UserError: a value out of range, or two settings that exclude each other.
    """
    if own["data_format"] is not None:
        checks.one_of(["preference"], data_format=own["data_format"])
    checks.between(2, math.inf, max_length=own["max_length"])
    checks.between(0, 1, max_dropped_share=own["max_dropped_share"])
    checks.between(0, 1024, tokenize_workers=own["tokenize_workers"])
    checks.positive(margin=own["margin"] or None, centering_coef=own["centering_coef"] or None)
    checks.not_both(margin=own["margin"] or None, margin_column=own["margin_column"])


def warn_without_effect(own: Mapping[str, Any], defaults: Mapping[str, Any], *datasets: object) -> None:
    """Tell of settings on the reading of rows, where all of ``datasets`` are tokenized."""
    if all(isinstance(rows, PairDataset) for rows in datasets if rows is not None):
        for name in own:
            if own[name] != defaults[name]:
                warnings.warn(f"--{name}={own[name]} has no effect on tokenized pairs", stacklevel=4)


def prepare_pairs(
    rows: Rows | RowStream | PairDataset | TokenizedDataset,
    tokenizer: Any,
    reading: Mapping[str, Any],
    where: str,
) -> PairDataset:
    """Pairs tokenized, from the cache if they have been before.

    Raises:
        UserError: rows that cannot be used; a stream.
    """
    if isinstance(rows, PairDataset):
        return rows
    if isinstance(rows, RowStream):
        raise UserError(f"{where}: pairs must be at hand, not a stream; leave --streaming out")
    if isinstance(rows, TokenizedDataset):
        raise UserError(f"{where}: tokenized rows are no pairs; give rows with 'chosen' and 'rejected'")
    cache = reading["data_cache"]
    return tokenize_pairs(
        named(rows, where),
        AnswerReader(tokenizer, reading["max_length"]),
        columns=reading["columns"],
        margin=reading["margin"],
        margin_column=reading["margin_column"],
        max_dropped_share=reading["max_dropped_share"],
        where=where,
        workers=reading["tokenize_workers"],
        cache=None if cache == "none" else Path(cache or default_folder()),
    )


def with_padding(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", *datasets: PairDataset | None
) -> "PreTrainedTokenizerBase":
    """The tokenizer with a padding token that no answer ends with, which is entered in the model's configuration.

    So that transformers, given a batch of texts, reads the scores where they were trained.
    """
    endings = {int(token) for data in datasets if data is not None for token in data.endings}
    pad = padding_token(tokenizer, endings)
    causal_lm.base_model(model).config.get_text_config().pad_token_id = pad
    if tokenizer.pad_token_id == pad or pad not in tokenizer.added_tokens_decoder:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = str(tokenizer.convert_ids_to_tokens(pad))
    return padded
