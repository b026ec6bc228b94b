"""What an iteration is made of before anything is learned: completions, their scores, and what models make of them.

Each rank does its share, and then all have everything: an ``Experience`` is the same on every rank.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from relax.adapters import without_adapter
from relax.experience import Experience
from relax.experience.recompute import token_statistics, token_values
from relax.ranks import gathered, share
from trainers.prompting import Asked, samples_of

if TYPE_CHECKING:
    from trainers.on_policy import OnPolicyTrainer
    from trainers.rl_trainer import RLTrainer


def generate(trainer: "OnPolicyTrainer", asked: Asked) -> Experience:
    """``num_generations`` completions of each prompt, by the policy as it is now."""
    with trainer.step_watch.timed("rollout"):
        numbers = list(asked)
        mine = [numbers[i] for i in share(len(numbers), trainer.trainer)]
        own = _written(trainer, asked, mine) if mine else None
        return Experience.joined(part for part in gathered(trainer.trainer, own) if part is not None)


def score(trainer: "OnPolicyTrainer", experience: Experience, asked: Asked) -> Experience:
    """The same with ``score``, ``reward/NAME`` of each function, and ``failures``: how often one gave no score.

    Raises:
        RewardFailed: a function gave no score.
    """
    with trainer.step_watch.timed("scoring"):
        mine = samples_of(
            experience,
            _own_completions(trainer, experience),
            asked,
            tokenizer=trainer.tokenizer,
            sampling=trainer.sampling,
            stop_strings=trainer.stop_strings,
        )
        columns: dict[str, list[float | None]] = {}
        if mine:
            scores = trainer.rewards.score(mine)
            columns = {"score": [*scores.total]}
            failures = sum(scores.num_faults.values()) / (len(mine) * len(scores.num_faults))
            columns["failures"] = [failures] * len(mine)  # the share of this rank
            columns |= {f"reward/{name}": values for name, values in scores.by_function.items()}
        parts = [part for part in gathered(trainer.trainer, columns) if part]
        return experience.with_completions({name: _joined(part[name] for part in parts) for name in parts[0]})


def recall(trainer: "OnPolicyTrainer", experience: Experience) -> Experience:
    """The same with ``ref_logprobs`` where there is a reference, and, where ``rereads``, with the policy's own anew."""
    with trainer.step_watch.timed("recall"):
        if trainer.compares:
            with _reference(trainer) as reference:
                logprobs, _ = _statistics(trainer, reference, experience)
            experience = experience.with_tokens(ref_logprobs=logprobs)
        if trainer.rereads:
            logprobs, entropy = _statistics(trainer, trainer.model, experience)
            experience = experience.with_tokens(logprobs=logprobs, entropy=entropy)
    return experience


def appraise(trainer: "RLTrainer", experience: Experience) -> Experience:
    """The same with ``values`` of tokens: V before each is chosen; and of completions ``value``: before the first one.

    Where those cut off are to be thought on, also with ``value_after``: behind the last one.
    """
    with trainer.step_watch.timed("appraisal"):
        own = token_values(
            trainer.critic,
            experience,
            _own_completions(trainer, experience),
            builder=trainer.builder,
            device=trainer.device,
        )
        before, after = (torch.cat(parts) for parts in zip(*gathered(trainer.trainer, own), strict=True))
    ends = {"value": before[experience.ends - experience.lengths]}
    if trainer.bootstrap_truncated:
        ends["value_after"] = after[experience.ends - 1]
    return experience.with_tokens(values=before).with_completions(ends)


def _written(trainer: "OnPolicyTrainer", asked: Asked, numbers: list[int]) -> Experience:
    prompts = [asked[number].ids for number in numbers]
    rollouts = trainer.engine.generate(
        prompts,
        num_samples=trainer.num_generations,
        sampling=trainer.sampling,
        seed=trainer.seed,
        prompt_ids=numbers,
        step=trainer.iteration,
    )
    return Experience.of(prompts, numbers, rollouts)


def _statistics(trainer: "OnPolicyTrainer", model: nn.Module, experience: Experience) -> tuple[Tensor, Tensor]:
    own = token_statistics(
        model,
        experience,
        _own_completions(trainer, experience),
        builder=trainer.builder,
        temperature=trainer.temperature,
        device=trainer.device,
        compiled=trainer.compiles_loss,
    )
    logprobs, entropies = zip(*gathered(trainer.trainer, own), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _own_completions(trainer: "OnPolicyTrainer", experience: Experience) -> range:
    """Those of this rank: of whole groups."""
    prompts = share(len(experience.prompts), trainer.trainer)
    return range(prompts.start * experience.num_samples, prompts.stop * experience.num_samples)


@contextmanager
def _reference(trainer: "OnPolicyTrainer") -> Iterator[nn.Module]:
    if trainer.reference is not None:
        yield trainer.reference
    else:
        with without_adapter(trainer.model):
            yield trainer.model


def _joined(parts: Iterable[list[float | None]]) -> Tensor:
    return torch.tensor([torch.nan if x is None else x for part in parts for x in part], dtype=torch.float64)
