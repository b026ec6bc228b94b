"""The name of all that the tokens of a data set depend on: rows, tokenizer, chat template, options, our own code."""

import hashlib
import json
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

import relax
from relax.data.rows import Identified, Rows, whole
from relax.data.tokens.encoding import EncodingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from relax.data.pairs.encoding import PairOptions

FORMAT = 2
"""To be raised with every change of the code that gives other tokens or masks for the same rows."""


def cache_key(rows: Rows, tokenizer: "PreTrainedTokenizerBase", options: "EncodingOptions | PairOptions") -> str | None:
    """A hex digest; None where the rows have no fingerprint, or (with a warning) the tokenizer is slow."""
    behind, indices = whole(rows)
    if not isinstance(behind, Identified):
        return None
    if not tokenizer.is_fast:
        warnings.warn(
            "a tokenizer written in Python cannot be named: the tokens are not kept for the next run", stacklevel=3
        )
        return None
    code = [FORMAT, relax.__version__, version("tokenizers"), version("transformers")]
    chosen = {"read as": type(options).__name__, **vars(options), "columns": dict(options.columns or {})}
    named = json.dumps([code, chosen, behind.fingerprint, describe_tokenizer(tokenizer)], sort_keys=True)
    digest = hashlib.blake2b(named.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(indices).data)
    return digest.hexdigest()


def describe_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """All of a fast tokenizer that decides about ids and text, as JSON can hold it."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left behind by whatever call came last
        del backend[state]
    return {
        "class": type(tokenizer).__name__,
        "backend": backend,
        "special": tokenizer.special_tokens_map,
        "split_special": tokenizer.split_special_tokens,  # not in the backend's text
        "template": tokenizer.chat_template,
    }
