"""What is logged of an iteration's rollouts."""

from collections.abc import Mapping

import torch

from relax.experience import Experience
from relax.policy_gradient import without_variance


def rollout_figures(experience: Experience, seconds: Mapping[str, float]) -> dict[str, float]:
    """Rewards, lengths, time: of all completions of the iteration, the same on every rank."""
    scores = experience.completions["score"].double()
    lengths = experience.lengths.double()
    figures = {
        "reward": scores.mean(),
        "reward_std": scores.std(correction=0),
        "completion_tokens": lengths.mean(),
        "longest_completion": lengths.max(),
        "truncated": experience.completions["truncated"].double().mean(),
        "reward_failures": experience.completions["failures"].mean(),
    }
    if experience.num_samples > 1:
        flat = without_variance(scores, experience.groups)
        figures["groups_without_variance"] = flat.double().mean()
    for name, column in experience.completions.items():
        if name.startswith("reward/") and not column.isnan().all():  # else it applies to none of these
            figures[name.replace("/", "_")] = column.double().nanmean()
    kl = experience.kl()
    if kl is not None:
        figures["sequence_kl"] = torch.tensor(kl)
    timed = {f"seconds_{name}": value for name, value in seconds.items()}
    speed = {f"{name}_tokens_per_second": float(lengths.sum()) / seconds[name] for name in ("rollout", "scoring")}
    return {name: float(value) for name, value in figures.items()} | timed | speed
