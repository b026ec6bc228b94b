"""What becomes of a row once it is tokenized: cut to length, looked at, dropped or kept. Knows no text.

A row ends well if its last token is a trained end-of-turn: the eos token, or any of the tokens that a tokenizer has
beside its vocabulary, because templates end turns with those.
"""

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from relax.data.tokens.token_ids import TokenIds
from relax.data.tokens.tokenized import Sample, TokenizationReport
from relax.data.tokens.truncation import Truncation, truncate

Reason = Literal[
    "", "empty text", "no training target", "no training target within max_length", "longer than max_length", "weight 0"
]


class Encoded(NamedTuple):
    """What became of a row."""

    sample: Sample | None
    """None: the row is dropped."""
    reason: Reason = ""
    """Why it is dropped."""
    truncated_tokens: int = 0
    without_end_of_turn: bool = False
    double_bos: bool = False
    unknown_tokens: int = 0

    @property
    def samples(self) -> list[Sample]:
        """Of the row."""
        return [] if self.sample is None else [self.sample]

    def count_in(self, report: TokenizationReport) -> None:
        """Add the row to ``report``."""
        report.rows += 1
        if self.sample is None:
            report.dropped[self.reason] += 1
        report.truncated += self.truncated_tokens > 0
        report.truncated_tokens += self.truncated_tokens
        report.without_end_of_turn += self.without_end_of_turn
        report.double_bos += self.double_bos
        report.unknown_tokens += self.unknown_tokens


class Finisher:
    """Makes the last decisions about a sample: ``max_length`` and ``truncation`` as in ``EncodingOptions``."""

    def __init__(self, ids: TokenIds, max_length: int | None, truncation: Truncation):
        self.ids, self.max_length, self.truncation = ids, max_length, truncation
        self.bos: int | None = ids.tokenizer.bos_token_id

    def finish(self, whole: Sample, if_empty: Reason) -> Encoded:
        """What becomes of a sample; ``if_empty`` is the reason for dropping one that had no target to begin with.

        Raises:
            UserError: it is too long, and that is to be an error.
        """
        if not whole.loss_mask.any():
            return Encoded(None, if_empty)
        sample = truncate(whole, self.max_length, self.truncation, self.bos)
        if sample is None:
            return Encoded(None, "longer than max_length")
        if not sample.loss_mask.any():
            return Encoded(None, "no training target within max_length")
        cut = len(whole.input_ids) - len(sample.input_ids)
        return Encoded(
            sample,
            truncated_tokens=cut,
            without_end_of_turn=not self._ends(sample) and not (cut and self.truncation == "end"),
            double_bos=self.bos is not None and sample.input_ids[:2].tolist() == [self.bos] * 2,
            unknown_tokens=int(np.count_nonzero(sample.input_ids == self._unknown)),
        )

    def _ends(self, sample: Sample) -> bool:
        return bool(sample.loss_mask[-1]) and int(sample.input_ids[-1]) in self._stop_ids

    @cached_property
    def _stop_ids(self) -> frozenset[int]:
        return self.ids.added_ids.union(self.ids.stop)

    @cached_property
    def _unknown(self) -> int:
        """The id of the unknown token, where it means nothing else (GPT-2 uses one for unknown, bos and eos); or -1."""
        tokenizer = self.ids.tokenizer
        known = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, None}
        return -1 if tokenizer.unk_token_id in known else int(tokenizer.unk_token_id)
