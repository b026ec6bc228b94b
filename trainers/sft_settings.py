"""Settings of the SFT trainer: which values cannot work, and how rows are made ready with them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relax import checks
from relax.data.batching.streaming import SampleStream
from relax.data.formats.formats import FORMATS
from relax.data.rows import Rows
from relax.data.sources.dataset_rows import named
from relax.data.sources.streams import RowStream
from relax.data.tokens.encoding import EncodingOptions
from relax.data.tokens.token_cache import default_folder
from relax.data.tokens.tokenization import tokenize_rows
from relax.data.tokens.tokenized import TokenizedDataset
from relax.errors import UserError
from relax.losses import TOKEN_LOSSES

ONCE = ("tokenize_workers", "data_cache")
"""Settings of a tokenization before the run."""
ENCODING = ("data_format", "columns", "weight_column", "max_length", "truncation", "train_on", "max_dropped_share")


def check_reading(own: Mapping[str, Any]) -> None:
    """How rows are read.

    Raises:
        UserError: a value out of range.
    """
    encoding_options(own)
    if own["data_format"] is not None:
        checks.one_of(FORMATS, data_format=own["data_format"])
    checks.between(0, 1, max_dropped_share=own["max_dropped_share"])
    checks.positive(shuffle_buffer=own["shuffle_buffer"])
    checks.between(0, 1024, tokenize_workers=own["tokenize_workers"])


def check_objective(own: Mapping[str, Any]) -> None:
    """What is minimised.

    Raises:
        UserError: a value out of range, or two that exclude each other.
    """
    checks.one_of(TOKEN_LOSSES, loss=own["loss"])
    checks.between(0, 1 - 1e-9, label_smoothing=own["label_smoothing"])
    if own["label_smoothing"] and own["loss"] != "nll":
        raise UserError(
            f"--label_smoothing={own['label_smoothing']} goes with --loss=nll, got --loss={own['loss']}; leave one out"
        )
    off = {name: own[name] for name in ("z_loss", "neftune_alpha", "router_aux_loss_coef")}
    checks.positive(**{name: value or None for name, value in off.items()})  # 0 switches one off


def encoding_options(own: Mapping[str, Any]) -> EncodingOptions:
    """How rows become samples.

    Raises:
        UserError: a value that cannot be.
    """
    names = ("max_length", "truncation", "train_on", "columns", "weight_column")
    return EncodingOptions(format=own["data_format"], **{name: own[name] for name in names})


def warn_without_effect(own: Mapping[str, Any], defaults: Mapping[str, Any], *datasets: object) -> None:
    """Tell of settings on the reading of rows that none of ``datasets`` (training and validation data) is read by."""
    given = [rows for rows in datasets if rows is not None]
    streams = [isinstance(rows, RowStream) for rows in given]
    idle = {} if any(streams) else {"shuffle_buffer": "data that are not streamed"}
    if all(streams):
        idle |= dict.fromkeys(ONCE, "streamed data")
    if all(isinstance(rows, TokenizedDataset) for rows in given):
        idle |= dict.fromkeys((*ENCODING, *ONCE), "tokenized data")
    for name, reason in idle.items():
        if own[name] != defaults[name]:
            warnings.warn(f"--{name}={own[name]} has no effect on {reason}", stacklevel=4)
    if own["max_length"] is None and own["truncation"] != defaults["truncation"]:
        warnings.warn(f"--truncation={own['truncation']} has no effect without --max_length", stacklevel=4)


def prepare_rows(
    rows: Rows | RowStream | TokenizedDataset, tokenizer: Any, reading: Mapping[str, Any], seed: int
) -> TokenizedDataset | SampleStream:
    """Training rows as the trainer takes them: tokenized now, or, of a stream, as they are read.

    Raises:
        UserError: rows that cannot be used.
    """
    if not isinstance(rows, RowStream):
        return tokenized(rows, tokenizer, reading, "training data")
    options, share = encoding_options(reading), reading["max_dropped_share"]
    return SampleStream(rows, tokenizer, options, "training data", seed, reading["shuffle_buffer"], share)


def prepare_held_out(
    rows: Rows | RowStream | TokenizedDataset | None, tokenizer: Any, reading: Mapping[str, Any]
) -> TokenizedDataset | None:
    """Validation rows, if there are any, tokenized.

    Raises:
        UserError: rows that cannot be used; a stream.
    """
    if isinstance(rows, RowStream):
        raise UserError("validation data must be rows at hand, not a stream: their loss is a mean over all of them")
    return None if rows is None else tokenized(rows, tokenizer, reading, "validation data")


def tokenized(
    rows: Rows | TokenizedDataset, tokenizer: Any, reading: Mapping[str, Any], where: str
) -> TokenizedDataset:
    """Rows tokenized, from the cache if they have been before."""
    if isinstance(rows, TokenizedDataset):
        return rows
    return tokenize_rows(
        named(rows, where),
        tokenizer,
        encoding_options(reading),
        where=where,
        max_dropped_share=reading["max_dropped_share"],
        workers=reading["tokenize_workers"],
        cache=None if reading["data_cache"] == "none" else Path(reading["data_cache"] or default_folder()),
    )
