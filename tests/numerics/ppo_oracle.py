"""A PPO run retraced slowly from what it sampled: one completion, one token at a time, forwards of plain transformers.

Knows nothing of micro-batches, ranks, layouts, PEFT or critics; of the trainer only which completions an optimizer step
has, and what its weights are called.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from grpo_run import policy
from ppo_equations import PPO, Answer, Now, StepLoss, appraise, step_loss
from ppo_run import LORA, Steps, adapted, train
from torch import Tensor
from torch.func import functional_call

from relax.experience import Experience, plan_passes
from relax.seeding import mix
from trainers import RLTrainer

Weights = dict[str, Tensor]
HEAD = "critic.head."
CRITICS = ["separate", "shared", "adapter"]


@dataclass
class Oracle:
    """What the losses of each optimizer step are by the papers, as functions of the run's weights.

    Args:
        trainer: after the run.
        steps: what was seen of it.
        ppo: its settings.
        critic: adapter, separate or shared.
        reference: a causal language model; default: the base.
        kl_coefs: of each optimizer step, where it changes; in the reward that of the step before the iteration counts.
        whole: an iteration is one step, as with a loader of the user's own.
    """

    trainer: RLTrainer
    steps: Steps
    ppo: PPO
    critic: str
    reference: Any = None
    kl_coefs: Sequence[float] = ()
    whole: bool = False

    def __post_init__(self) -> None:
        self.base = policy().double().eval()
        self.base_weights: Weights = {name: p.detach() for name, p in self.base.named_parameters()}

    # The models, as weights of a plain causal language model

    def actor_weights(self, leaves: Weights) -> Weights:
        own = {name.removeprefix("model."): p for name, p in leaves.items() if name.startswith("model.")}
        return self.with_adapter(leaves, "default") if any("lora_" in name for name in own) else own

    def critic_weights(self, leaves: Weights) -> Weights:
        if self.critic == "adapter":
            return self.with_adapter(leaves, "critic")
        body = {name.replace("critic.body.", "model."): p for name, p in leaves.items() if "critic.body." in name}
        return self.base_weights | body

    def with_adapter(self, leaves: Weights, adapter: str) -> Weights:
        """W + (alpha / r) B A (arXiv 2106.09685)."""
        weights = dict(self.base_weights)
        for name in weights:
            at = "model.base_model.model." + name.removesuffix(".weight")
            if (down := leaves.get(f"{at}.lora_A.{adapter}.weight")) is not None:
                up = leaves[f"{at}.lora_B.{adapter}.weight"]
                weights[name] = weights[name] + LORA.alpha / LORA.r * up @ down
        return weights

    def forward(self, weights: Weights, prompt: list[int], ids: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probs of the whole vocabulary where each token is chosen, [tokens, V]; states there and behind."""
        options = {"output_hidden_states": True}
        output = functional_call(self.base, weights, (torch.tensor([prompt + ids]),), options)
        logits, hidden = (x[0, len(prompt) - 1 :] for x in (output.logits, output.hidden_states[-1]))
        return (logits[:-1] / self.ppo.temperature).log_softmax(-1), hidden

    def forward_both(self, leaves: Weights, prompt: list[int], ids: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probs [tokens, V] by the policy; V before each token is chosen, and V behind the last, [tokens + 1].

        A shared model is run once: transformers' norms round to fp32, and so does each backward pass for itself.
        """
        logprobs, hidden = self.forward(self.actor_weights(leaves), prompt, ids)
        if self.critic != "shared":
            _, hidden = self.forward(self.critic_weights(leaves), prompt, ids)
        bias = leaves.get(f"{HEAD}bias", torch.zeros(1, dtype=torch.float64))
        return logprobs, hidden @ leaves[f"{HEAD}weight"][0] + bias

    # The run

    @property
    def steps_of_an_iteration(self) -> int:
        if self.whole:
            return 1
        return self.trainer.num_iterations * self.trainer.steps_per_generation

    def members(self, experience: Experience) -> list[list[int]]:
        """The completions of each optimizer step of an iteration, those that are learned from."""
        truncated = experience.completions["truncated"]
        if self.whole:
            return [[i for i in range(len(experience)) if not (self.ppo.mask_truncated and truncated[i])]]
        kept = ~truncated if self.ppo.mask_truncated else torch.ones_like(truncated)
        passes, parts = self.trainer.num_iterations, self.trainer.steps_per_generation
        seed = mix(self.trainer.seed, "minibatches", experience.numbers[0])
        nothing = torch.zeros_like(kept)
        plan = plan_passes(kept, nothing, experience.lengths, passes=passes, steps_per_pass=parts, seed=seed)
        return [step.completions for step in plan]

    @torch.no_grad()
    def answers(self, iteration: int) -> list[Answer]:
        """What an iteration learns from, by the weights that it started with."""
        experience = self.steps.experiences[iteration]
        leaves = self.steps.weights[iteration * self.steps_of_an_iteration]
        reference = dict((self.reference or self.base).double().named_parameters())
        answers = []
        for i in range(len(experience)):
            prompt, ids = experience.prompt(i), experience.completion(i)
            rows, values = self.forward_both(leaves, prompt, ids)
            *before, after = values.tolist()
            score, truncated = (experience.completions[name][i].item() for name in ("score", "truncated"))
            old = [x.item() for x in chosen(rows, ids)]
            ref = [x.item() for x in chosen(self.forward(reference, prompt, ids)[0], ids)]
            answers.append(Answer(old, before, after, score, truncated, ref))
        earlier = [x for e in self.steps.experiences[:iteration] for x in e.completions["score"].tolist()]
        appraise(self.settings(iteration * self.steps_of_an_iteration - 1), answers, earlier)
        return answers

    def settings(self, step: int) -> PPO:
        """As of an optimizer step."""
        return replace(self.ppo, kl_coef=self.kl_coefs[step]) if self.kl_coefs and step >= 0 else self.ppo

    def now(self, leaves: Weights, experience: Experience, i: int) -> Now:
        prompt, ids = experience.prompt(i), experience.completion(i)
        rows, values = self.forward_both(leaves, prompt, ids)
        entropies = [-(row.exp() * row).sum() for row in rows]
        return Now(chosen(rows, ids), entropies, list(values[:-1]))

    def losses(self) -> Iterator[tuple[StepLoss, Weights]]:
        """Of each optimizer step, and the weights, with gradient, that they are functions of."""
        for iteration, experience in enumerate(self.steps.experiences):
            answers = self.answers(iteration)
            first = iteration * self.steps_of_an_iteration
            for step, members in enumerate(self.members(experience)[: len(self.steps.weights) - first], first):
                leaves = {name: p.clone().requires_grad_() for name, p in self.steps.weights[step].items()}
                nows = [self.now(leaves, experience, i) for i in members]
                yield step_loss(self.settings(step), [answers[i] for i in members], nows), leaves


def chosen(rows: Tensor, ids: list[int]) -> list[Tensor]:
    return [row[token] for row, token in zip(rows, ids, strict=True)]


def gradients(loss: Tensor, leaves: Weights) -> Weights:
    """0 where the loss does not depend on a weight."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def check_every_step(oracle: Oracle) -> None:
    """Gradients and loss of every optimizer step."""
    for (parts, leaves), found, figures in zip(
        oracle.losses(), oracle.steps.gradients, oracle.steps.figures, strict=True
    ):
        loss = parts.total(oracle.ppo)
        same(found, gradients(loss, leaves))
        torch.testing.assert_close(figures["loss"], loss.item(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(figures["value_loss"], parts.value.item(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(figures["value_clip"], parts.value_clip, rtol=1e-5, atol=1e-7)


def same(found: Weights, expected: Weights, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def run(critic: str = "separate", model: Any = None, reference: Any = None, **settings: Any) -> Oracle:
    """A run and its oracle; ``settings`` of PPO go to both."""
    ppo = PPO(**{name: value for name, value in settings.items() if name in PPO.__dataclass_fields__})
    model = adapted() if critic == "adapter" else model
    steps, trainer = train(model, critic=critic, reference=reference, **settings)
    return Oracle(trainer, steps, ppo, critic, reference)


def is_critics(name: str, critic: str) -> bool:
    """Whether a weight is the value function's alone."""
    return name.startswith("critic.") or (critic == "adapter" and ".critic." in name)


def split(weights: Weights, critic: str) -> tuple[Weights, Weights]:
    """The policy's and the critic's."""
    own = {name: x for name, x in weights.items() if is_critics(name, critic)}
    return {name: x for name, x in weights.items() if name not in own}, own


def norm(weights: Weights) -> float:
    return float(torch.cat([x.flatten() for x in weights.values()]).norm())


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() / len(terms)
