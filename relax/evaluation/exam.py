"""Prompts, what is asked of a policy on each, and what its answers come to. It does not know who asks, or when.

Legend: P prompts, A answers of each (a greedy one, and the sampled ones), S = P x A answers, C columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relax.errors import UserError
from relax.evaluation.pass_at_k import pass_at_k
from relax.rewards import Rewards, Sample, Scores
from relax.rewards.shown import shown
from relax.rollout import RolloutEngine, Rollouts, Sampling
from relax.seeding import mix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from relax.data.prompts import PromptDataset

_SCORE, _LENGTH, _TRUNCATED, _FUNCTIONS = 0, 1, 2, 3  # columns; from the last on, one a reward function
_GREEDY: dict[str, Any] = {"greedy": True, "temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0}


@dataclass(frozen=True)
class Exam:
    """The same questions each time: the answers are a function of the policy and ``seed`` alone.

    Raises:
        UserError: a setting out of range.
    """

    prompts: "PromptDataset"
    rewards: Rewards
    sampling: Sampling
    """Of the sampled answers; the greedy one keeps its lengths, its ends and its repetition penalty."""
    stop_strings: Sequence[str] = ()
    """What ``sampling.stop_when`` looks for: cut off from the text that is scored."""
    num_samples: int = 1
    """Answers of each prompt that are sampled; 1: none, only the greedy one."""
    ks: Sequence[int] = (1,)
    """Of pass@k, which needs sampled answers."""
    correct: str | None = None
    """Name of the reward function that says whether an answer is right; None: the first."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every setting."""
        check_samples(self.num_samples, self.ks)
        check_correct(self.rewards, self.correct)
        if self.num_samples > 1 and self.sampling.greedy:
            raise UserError(f"sampling must not be greedy with num_samples={self.num_samples}: all would be equal")

    @property
    def functions(self) -> list[str]:
        """Names of the reward functions."""
        return [reward.name for reward in self.rewards.functions]

    @property
    def grader(self) -> str:
        """Name of the one that says whether an answer is right."""
        return self.correct or self.functions[0]

    def ask(self, engine: RolloutEngine, tokenizer: "PreTrainedTokenizerBase", numbers: Sequence[int]) -> Tensor:
        """What the answers to the prompts at ``numbers`` score: [their count, A, C], fp64.

        Raises:
            RewardFailed: see `Rewards.score`.
        """
        num_sampled = self.num_samples if self.num_samples > 1 else 0
        if not numbers:
            return torch.zeros(0, 1 + num_sampled, _FUNCTIONS + len(self.functions), dtype=torch.float64)
        rollouts = [self._generate(engine, numbers, replace(self.sampling, **_GREEDY), 1)]
        if num_sampled:
            rollouts.append(self._generate(engine, numbers, self.sampling, num_sampled))
        samples = [sample for part in rollouts for sample in self._samples(part, tokenizer, numbers)]
        values = _columns(samples, self.rewards.score(samples)).split([len(part.lengths) for part in rollouts])
        return torch.cat([part.unflatten(0, (len(numbers), -1)) for part in values], dim=1)

    def figures(self, values: Tensor) -> dict[str, float]:
        """What all answers, [P, A, C], come to: accuracy, reward, reward_NAME, truncated, completion_length, pass@K.

        ``accuracy`` is the share of greedy answers that are right: that score at least 1 by the function ``correct``
        and were not cut off. Prompts to which that function does not apply do not count.

        Raises:
            UserError: it applies to none.
        """
        right, greedy = self._right(values), values[:, 0]
        figures = {"accuracy": _mean(right[:, 0].double()), "reward": _mean(greedy[:, _SCORE])}
        for name, scores in zip(self.functions, greedy[:, _FUNCTIONS:].unbind(1), strict=True):
            if not scores.isnan().all():
                figures[f"reward_{name}"] = _mean(scores[~scores.isnan()])
        figures["truncated"] = _mean(greedy[:, _TRUNCATED])
        figures["completion_length"] = _mean(greedy[:, _LENGTH])
        if self.num_samples > 1:
            counts = right[:, 1:].sum(1).tolist()
            for k in self.ks:
                figures[f"pass@{k}"] = math.fsum(pass_at_k(self.num_samples, c, k) for c in counts) / len(counts)
        return figures

    def best_grade(self, values: Tensor) -> float:
        """The highest score of any answer, of all answers [P, A, C], by the function ``correct``."""
        grades = self._grades(values)
        return float(grades[~grades.isnan()].max())

    def _right(self, values: Tensor) -> Tensor:
        """[prompts that can be right or wrong, A], bool."""
        scores = self._grades(values)
        applies = ~scores.isnan().all(1)
        if not applies.any():
            raise UserError(
                f"the reward {self.grader!r} says which answers are right, but applies to none of the {len(values)} "
                "evaluation prompts; name another one as correct, or give the rows the columns that it needs"
            )
        return ((scores >= 1) & (values[..., _TRUNCATED] == 0))[applies]

    def _grades(self, values: Tensor) -> Tensor:
        """[P, A], what ``grader`` gave."""
        return values[..., _FUNCTIONS + self.functions.index(self.grader)]

    def _generate(
        self, engine: RolloutEngine, numbers: Sequence[int], sampling: Sampling, num_samples: int
    ) -> Rollouts:
        return engine.generate(
            [self.prompts.ids(number) for number in numbers],
            num_samples=num_samples,
            sampling=sampling,
            seed=mix("exam", self.seed),
            prompt_ids=numbers,
        )

    def _samples(
        self, rollouts: Rollouts, tokenizer: "PreTrainedTokenizerBase", numbers: Sequence[int]
    ) -> list[Sample]:
        asked = [self.prompts[number] for number in numbers]
        return [
            shown(
                asked[i // rollouts.num_samples],
                ids,
                truncated=rollouts.finish_reasons[i] == "length",
                tokenizer=tokenizer,
                sampling=self.sampling,
                stop_strings=self.stop_strings,
            )
            for i, ids in enumerate(rollouts.completions())
        ]


def check_samples(num_samples: int, ks: Sequence[int]) -> None:
    """Refuse what no pass@k can be computed from.

    Raises:
        UserError: ``num_samples`` below 1, or one of ``ks`` not between 1 and it.
    """
    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1, got {num_samples}")
    if wrong := [k for k in ks if not 1 <= k <= num_samples]:
        raise UserError(f"every k of pass@k must lie between 1 and num_samples={num_samples}, got {wrong[0]}")


def check_correct(rewards: Rewards, correct: str | None) -> None:
    """Refuse a name that is none of the reward functions'.

    Raises:
        UserError: names those that there are.
    """
    names = [reward.name for reward in rewards.functions]
    if correct is not None and correct not in names:
        raise UserError(f"correct must be one of the rewards, {', '.join(names)}, got {correct}")


def _columns(samples: Sequence[Sample], scores: Scores) -> Tensor:
    """[S, C], NaN where a function does not apply."""
    lengths = [len(sample.completion_ids or ()) for sample in samples]
    cut = [float(sample.truncated) for sample in samples]
    functions = [[math.nan if s is None else s for s in column] for column in scores.by_function.values()]
    return torch.tensor([scores.total, lengths, cut, *functions], dtype=torch.float64).T


def _mean(values: Tensor) -> float:
    """Correctly rounded: no order of summation shows."""
    return math.fsum(values.tolist()) / len(values)
