"""The endless walk through the prompts, one shuffled pass after another. Holds no state, knows no prompt."""

from dataclasses import dataclass

import numpy as np

from relax.data.batching.planning import Int16, Int64, check_shares, epoch_order
from relax.seeding import mix


@dataclass(frozen=True)
class PromptWalk:
    """Where a run is in the data is one number, the walk position; nothing else need be kept to continue.

    Pass k is f(seed, k): every prompt once, or of a mixture with ``shares`` as many of each part as it is due.

    Args:
        num_prompts: of the data set, P.
        seed: of the order.
        shares, parts, part_names: of a mixture, as :class:`PromptDataset` has them.

    Raises:
        UserError: a part of the mixture has no prompt, or too small a share for one.
    """

    num_prompts: int
    seed: int
    shares: tuple[float, ...] = ()
    parts: Int16 | None = None  # [P]
    part_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.num_prompts > 0, "a walk needs a prompt"
        check_shares(self)

    def __len__(self) -> int:
        """Prompts of one pass."""
        return self.num_prompts

    def indices(self, start: int, count: int) -> list[int]:
        """Positions in the data set of the prompts at the walk positions from ``start`` to ``start + count - 1``."""
        first, last = start // self.num_prompts, (start + count - 1) // self.num_prompts
        passes = [self._pass(number) for number in range(first, last + 1)] or [np.empty(0, dtype=np.int64)]
        skipped = start - first * self.num_prompts
        return [int(index) for index in np.concatenate(passes)[skipped : skipped + count]]

    def _pass(self, number: int) -> Int64:
        return epoch_order(self, self.seed, number, np.random.default_rng(mix(self.seed, "prompts", number)))
