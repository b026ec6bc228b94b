"""The name of all that the tokens of a data set depend on: rows, tokenizer, chat template, options, our own code."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import transformers

import relax
from relax.data.encoding import EncodingOptions
from relax.data.rows import Identified, Rows, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""To be raised with every change of the code that gives other tokens or masks for the same rows."""


def cache_key(rows: Rows, tokenizer: "PreTrainedTokenizerBase", options: EncodingOptions) -> str | None:
    """A hex digest; None where the rows have no fingerprint, or the tokenizer is not of the ``tokenizers`` library."""
    behind, indices = whole(rows)
    if not isinstance(behind, Identified) or not tokenizer.is_fast:
        return None
    code = [FORMAT, relax.__version__, tokenizers.__version__, transformers.__version__]
    chosen = {**vars(options), "columns": dict(options.columns or {})}
    named = json.dumps([code, chosen, behind.fingerprint, _describe(tokenizer)], sort_keys=True)
    digest = hashlib.blake2b(named.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(indices).data)
    return digest.hexdigest()


def _describe(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left behind by whatever call came last
        del backend[state]
    return {
        "class": type(tokenizer).__name__,
        "backend": backend,
        "special": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template,
    }
