"""What any rollout engine takes and gives: token ids in, token ids with log-probs out. No text, no rewards, no model.

Legend: P prompts, G samples a prompt, S = P x G completions, N tokens of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from relax.rollout.sampling import Sampling

FinishReason = Literal["stop", "length"]
"""``stop``: the completion ends with a stop token or where ``Sampling.stop_when`` ended it; ``length``: cut off."""


@dataclass(frozen=True)
class Rollouts:
    """Completions end to end, on the CPU; completion ``i`` answers prompt ``i // num_samples``."""

    ids: Tensor
    """[N], int64. A stop token is part of its completion: the policy chose it."""
    logprobs: Tensor
    """[N], of each token on the distribution that it was drawn from; the plain softmax where decoding is greedy."""
    lengths: Tensor
    """[S], int64, tokens; at least 1 each."""
    finish_reasons: tuple[FinishReason, ...]
    """[S]"""
    num_samples: int
    """G"""

    def completions(self) -> list[list[int]]:
        """The ids of each of the S completions."""
        return [part.tolist() for part in self.ids.split(self.lengths.tolist())]


class RolloutEngine(Protocol):
    """Something that samples completions from a policy."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        sampling: Sampling,
        seed: int,
        prompt_ids: Sequence[int] | None = None,
        step: int = 0,
    ) -> Rollouts:
        """``num_samples`` completions of each prompt.

        A random number is a function of (seed, step, prompt id, sample, position) alone, so a completion does not
        depend on what is generated beside it, on this machine or on another; but for rounding: the last bits of logits
        depend on the size of the batch, and a number that close to the border between two tokens may fall on either
        side of it, which is rare.

        Args:
            prompts: P lists of token ids, none empty.
            num_samples: G.
            sampling: how tokens are drawn and where completions end.
            seed: of the run.
            prompt_ids: [P], what each prompt is called in the whole run; its index where None. Two prompts of one step
                with one id get the same noise.
            step: another step, other noise.
        """
        ...
