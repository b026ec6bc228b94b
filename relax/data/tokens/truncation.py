"""What becomes of a row that is longer than ``max_length``. Knows no text.

"end" cuts the end off, and with it the end of turn; "start" cuts the beginning off, a bos token stays in front; "drop"
leaves the row out; "error" stops.
"""

from typing import Literal

import numpy as np

from relax.data.tokens.tokenized import Sample
from relax.errors import UserError

Truncation = Literal["end", "start", "drop", "error"]


def truncate(sample: Sample, max_length: int | None, how: Truncation, bos: int | None = None) -> Sample | None:
    """The sample in at most ``max_length`` tokens; None: it is to be left out.

    Raises:
        UserError: it is longer and ``how`` is "error".
    """
    length = len(sample.input_ids)
    if max_length is None or length <= max_length:
        return sample
    if how == "drop":
        return None
    if how == "error":
        raise UserError(
            f"the row has {length:,} tokens, more than --max_length={max_length}; raise it, or choose "
            "--truncation=end, start or drop"
        )
    kept = np.arange(max_length) if how == "end" else np.arange(length - max_length, length)
    if how == "start" and sample.input_ids[0] == bos:
        kept[0] = 0
    return Sample.of(sample.input_ids[kept], sample.loss_mask[kept], sample.weight)
