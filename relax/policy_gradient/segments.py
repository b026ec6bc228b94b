"""Which completion each token of a flat micro-batch is part of. No padding exists, and no completion is cut in two.

Legend: S completions (segments), N tokens of all of them, each completion's in one piece and in the order of time.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """The completions that N tokens are made of."""

    owners: Tensor
    """[N], integers: the completion each token is part of, ascending."""
    lengths: Tensor
    """[S], integers: the tokens of each completion; 0 where none of them counts."""

    @classmethod
    def of(cls, lengths: Tensor, num_tokens: int | None = None) -> "Segments":
        """From ``lengths`` [S]; with their sum at hand, ``num_tokens``, a GPU need not be asked for it."""
        places = torch.arange(len(lengths), device=lengths.device)
        return cls(places.repeat_interleave(lengths, output_size=num_tokens), lengths)

    def sums(self, x: Tensor) -> Tensor:
        """The sum of ``x`` [N] over each completion, [S]. Unlike ``index_add`` the same bits each time on a GPU too."""
        return torch.segment_reduce(x, "sum", lengths=self.lengths, initial=0, unsafe=True)

    def means(self, x: Tensor) -> Tensor:
        """The mean of ``x`` [N] over each completion, [S]; 0 for one without tokens."""
        return self.sums(x) / self.lengths.clamp(min=1)

    def spread(self, y: Tensor) -> Tensor:
        """``y`` [S] at each token of its completion, [N]."""
        return y[self.owners]

    def last_tokens(self) -> Tensor:
        """[N], bool: the last token of each completion."""
        last = torch.ones_like(self.owners, dtype=torch.bool)
        last[:-1] = self.owners[1:] != self.owners[:-1]
        return last

    def discounted_sums(self, x: Tensor, discount: float) -> Tensor:
        """y_t = sum_k discount^k x_{t+k} up to the end of t's completion, [N].

        In log2(N) passes over all tokens at once: after pass j, y_t holds the first 2^j terms, and takes as many more
        from y_{t+2^j}.
        """
        y, shift = x, 1
        while shift < len(x):
            joined = self.owners[shift:] == self.owners[:-shift]
            later = discount**shift * torch.where(joined, y[shift:], 0)
            y = torch.cat([y[:-shift] + later, y[-shift:]])
            shift *= 2
        return y
