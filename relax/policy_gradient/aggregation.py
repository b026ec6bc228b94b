"""One number from the losses of tokens. The denominators are those of the whole optimizer step, and are passed in.

So the gradient of a step does not depend on how its completions are cut into micro-batches and over ranks.

Legend: N tokens of S completions of a micro-batch, see ``segments``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from relax.policy_gradient.segments import Segments


@dataclass(frozen=True)
class StepTotals:
    """Of a whole optimizer step: all its micro-batches on all ranks. At least 1 each, so that nothing divides by 0."""

    sequences: int
    """Completions that are trained on."""
    tokens: int
    """Tokens of them."""
    max_tokens: int
    """The most tokens a completion may have: a setting, not a measurement."""
    micro_batches: int = 1
    """World size x accumulation steps: Lightning divides by it."""

    @classmethod
    def of(cls, lengths: Sequence[int], max_tokens: int, micro_batches: int = 1) -> "StepTotals":
        """From the tokens of each completion of the step that is trained on: where those that were cut off are left
        out (overlong filtering, arXiv 2503.14476), out of the denominators too.
        """
        return cls(max(1, len(lengths)), max(1, sum(lengths)), max_tokens, micro_batches)


def sequence_mean(loss: Tensor, segments: Segments, totals: StepTotals) -> Tensor:
    """The mean over completions of the mean over their tokens: GRPO (arXiv 2402.03300, equation 3)."""
    return segments.means(loss).sum() / totals.sequences


def token_mean(loss: Tensor, segments: Segments, totals: StepTotals) -> Tensor:
    """The mean over all tokens of the step: DAPO (arXiv 2503.14476, equation 8)."""
    return loss.sum() / totals.tokens


def fixed_length_mean(loss: Tensor, segments: Segments, totals: StepTotals) -> Tensor:
    """The sum over tokens / (completions x max_tokens): Dr. GRPO (arXiv 2503.20783)."""
    return loss.sum() / (totals.sequences * totals.max_tokens)


AGGREGATIONS: dict[str, Callable[[Tensor, Segments, StepTotals], Tensor]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "fixed_length_mean": fixed_length_mean,
}
"""Each takes losses [N] and returns this micro-batch's part of the step's value: the parts of all add up to it."""
