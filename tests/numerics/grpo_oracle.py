"""A GRPO run retraced slowly from what it sampled: one completion, one token at a time, the model's own forward.

Knows nothing of micro-batches, ranks or layouts; of the trainer only which completions an optimizer step has.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from grpo_run import STEPS, Steps, flat
from published_objectives import LITERAL, Completion, grpo
from torch import Tensor

from relax.experience import Experience, plan_passes
from relax.seeding import mix
from trainers import GRPOTrainer


def group_std(rewards: list[float]) -> list[float]:
    """Section 4.1.2 of arXiv 2402.03300."""
    mean = statistics.fmean(rewards)
    return [(r - mean) / (statistics.stdev(rewards) + 1e-4) for r in rewards]


def group_mean(rewards: list[float]) -> list[float]:
    """arXiv 2503.20783."""
    return [r - statistics.fmean(rewards) for r in rewards]


def leave_one_out(rewards: list[float]) -> list[float]:
    """arXiv 2402.14740."""
    return [r - statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


ADVANTAGES: dict[str, Callable[[list[float]], list[float]]] = {
    "grpo": group_std, "dapo": group_std, "dr_grpo": group_mean, "gspo": group_std, "cispo": group_std,
    "rloo": leave_one_out,
}  # fmt: skip


@dataclass
class Oracle:
    """What the objective of each optimizer step is by the paper.

    Args:
        trainer: after the run.
        steps: what was seen of it.
        preset: the method.
        make: gives the model that the run began with.
        reference: of the KL penalty.
        as_reference: turns the policy into its reference for a while, where there is no other: an adapter off.
        kl_coefs: of each optimizer step, for ``grpo``.
        entropy_coef: as the trainer's.
        top_entropy_share: likewise.
    """

    trainer: GRPOTrainer
    steps: Steps
    preset: str
    make: Callable[[], Any]
    reference: Any = None
    as_reference: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    kl_coefs: Sequence[float] = ()
    entropy_coef: float = 0.0
    top_entropy_share: float = 1.0

    def model(self, step: int) -> Any:
        """With the weights that optimizer step ``step`` started from."""
        model = self.make().double().eval()
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.steps.weights[step].items():
                parameters[name].copy_(value)
        return model

    def distributions(self, model: Any, experience: Experience, index: int) -> Tensor:
        """Log-probs of the whole vocabulary where each token of completion ``index`` is chosen, [its tokens, V]."""
        prompt, ids = experience.prompt(index), experience.completion(index)
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return (logits / self.trainer.temperature).log_softmax(-1)

    def logprobs(self, model: Any, experience: Experience, index: int) -> list[Tensor]:
        """Of the tokens of completion ``index``."""
        rows = self.distributions(model, experience, index)
        return [row[token] for row, token in zip(rows, experience.completion(index), strict=True)]

    def members(self, experience: Experience) -> list[list[int]]:
        """The completions of each optimizer step of an iteration, and of those the ones that are learned from."""
        truncated = experience.completions["truncated"]
        kept = ~truncated if self.trainer.mask_truncated else torch.ones_like(truncated)
        passes, parts = self.trainer.num_iterations, self.trainer.steps_per_generation
        seed = mix(self.trainer.seed, "minibatches", experience.numbers[0])
        nothing = torch.zeros_like(truncated)
        plan = plan_passes(kept, nothing, experience.lengths, passes=passes, steps_per_pass=parts, seed=seed)
        return [step.completions for step in plan]

    @torch.no_grad()
    def known(self, iteration: int) -> tuple[list[Completion], list[Tensor]]:
        """Old and reference log-probs and advantages of an iteration, and the entropies of its tokens."""
        experience = self.steps.experiences[iteration]
        model, everything = self.model(iteration * self.steps_of_an_iteration), range(len(experience))
        old = [[float(x) for x in self.logprobs(model, experience, i)] for i in everything]
        entropies = [entropy(self.distributions(model, experience, i)) for i in everything]
        with self.as_reference(model):
            reference = model if self.reference is None else self.reference
            ref = [[float(x) for x in self.logprobs(reference, experience, i)] for i in everything]
        scores = experience.completions["score"].tolist()
        if self.preset == "rloo":
            pairs = zip(scores, old, ref, strict=True)
            scores = [r - 0.05 * sum(a - b for a, b in zip(x, y, strict=True)) for r, x, y in pairs]
        groups = [scores[i : i + experience.num_samples] for i in range(0, len(scores), experience.num_samples)]
        advantages = [a for group in groups for a in ADVANTAGES[self.preset](group)]
        return [Completion([], *x) for x in zip(old, ref, advantages, strict=True)], entropies

    @property
    def steps_of_an_iteration(self) -> int:
        return self.trainer.num_iterations * self.trainer.steps_per_generation

    def losses(self) -> Iterator[tuple[Tensor, Any]]:
        """The published objective of each optimizer step, and the model that it is a function of."""
        for iteration, experience in enumerate(self.steps.experiences):
            known, entropies = self.known(iteration)
            steps = self.members(experience)
            trained = torch.cat([entropies[i] for i in range(len(entropies)) if any(i in step for step in steps)])
            threshold = float(np.quantile(trained.numpy(), 1 - self.top_entropy_share))
            first = iteration * self.steps_of_an_iteration
            for step, members in enumerate(steps[: len(self.steps.gradients) - first], first):
                model = self.model(step)
                ys, bonus = [], [torch.zeros(0)]
                for i in members:
                    now = self.distributions(model, experience, i)
                    chosen = [row[token] for row, token in zip(now, experience.completion(i), strict=True)]
                    # A token that is left out keeps its place in the denominators: as one that cannot be changed.
                    pairs = zip(chosen, entropies[i].tolist(), strict=True)
                    ys.append(replace(known[i], now=[x if h >= threshold else x.detach() for x, h in pairs]))
                    bonus.append(entropy(now))
                loss = grpo(ys, self.kl_coefs[step]) if self.kl_coefs else LITERAL[self.preset](ys)
                yield loss - self.entropy_coef * torch.cat(bonus).mean(), model


def check_every_step(oracle: Oracle, num_steps: int = STEPS) -> None:
    """Gradient and loss of every optimizer step."""
    assert len(oracle.steps.gradients) == num_steps
    recorded = zip(oracle.losses(), oracle.steps.gradients, oracle.steps.figures, strict=True)
    for (loss, model), found, figures in recorded:
        trained = [p for p in model.parameters() if p.requires_grad]
        expected = flat(list(torch.autograd.grad(loss, trained, materialize_grads=True)))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        if oracle.top_entropy_share == 1:  # tokens that are left out have no part in our loss
            assert math.isclose(figures["loss"], float(loss.detach()), rel_tol=1e-5, abs_tol=1e-7)


def entropy(logprobs: Tensor) -> Tensor:
    """Nats, [tokens], of log-probs [tokens, V]."""
    return -(logprobs.exp() * logprobs).sum(-1)
