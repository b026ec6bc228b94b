"""PPO as a good engineer writes it for one model: plain PyTorch, Hugging Face's ``generate``, padded batches. No ReLax.

What ``ppo.py`` and ``ppo_learning.py`` measure ReLax against. It wastes little: a cache of keys and values, log-probs
kept from sampling, the head only at completion positions, a fused AdamW, and the backward pass of the policy over
before the critic's begins. It logs next to nothing. The equations are those of arXiv 1707.06347 and 2403.17031.

Legend: B completions, P tokens of the longest prompt, T of the longest completion, V vocabulary. Prompts are padded on
the left, completions on the right.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaForCausalLM, LlamaModel


@dataclass(frozen=True)
class Settings:
    """In the words of ``RLTrainer``."""

    max_new_tokens: int
    stop_ids: list[int]
    pad_id: int = 0
    batch_size: int = 64
    """Completions of one optimizer step."""
    micro_batch_size: int = 64
    num_iterations: int = 4
    learning_rate: float = 3e-6
    critic_learning_rate: float = 3e-6
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip_val: float = 1.0
    kl_coef: float = 0.05
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95


@dataclass
class Rollout:
    """Completions with their prompts, as one padded batch."""

    ids: Tensor
    """[B, P + T]"""
    mask: Tensor
    """[B, P + T], bool: tokens of prompts and completions, not padding."""
    kept: Tensor
    """[B, T], bool: tokens of completions, the one that ends it included."""
    logprobs: Tensor
    """[B, T], when sampled."""

    @classmethod
    def of(cls, prompts: Tensor, prompt_mask: Tensor, completions: Tensor, kept: Tensor, logprobs: Tensor) -> "Rollout":
        """Prompts [B, P] and their completions [B, T]."""
        return cls(torch.cat([prompts, completions], 1), torch.cat([prompt_mask, kept], 1), kept, logprobs)

    @property
    def completions(self) -> Tensor:
        """[B, T]"""
        return self.ids[:, -self.kept.shape[1] :]

    def ends(self) -> Tensor:
        """[B], the position of each completion's last token."""
        return self.ids.shape[1] - self.kept.shape[1] + self.kept.sum(1) - 1


@dataclass
class Experience(Rollout):
    """Scored: what an update learns from."""

    values: Tensor
    advantages: Tensor
    returns: Tensor
    """[B, T] each."""

    def rows(self, chosen: Tensor) -> "Experience":
        """Some of the completions."""
        return Experience(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Critic(nn.Module):
    """A copy of the policy's body with a head that says 0 at first."""

    def __init__(self, body: LlamaModel) -> None:
        super().__init__()
        self.body = copy.deepcopy(body)
        self.head = nn.Linear(body.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Rollout) -> Tensor:
        """The value before each token of the completions, [B, T]."""
        values: Tensor = self.head(predicting(self.body, batch))
        return values.squeeze(-1)


class PPO:
    """Three steps: ``generate``, ``score``, ``update``.

    Args:
        policy: is trained.
        reward: gives a score for each completion, [B].
        settings: see there.

    Attributes:
        explained_variance: share of the variance of plain sums of rewards that the critic had foreseen, when it last
            scored.
    """

    explained_variance: float

    def __init__(
        self, policy: LlamaForCausalLM, reward: Callable[[Rollout], Tensor], settings: Settings, *, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.policy, self.reward, self.settings = policy.train(), reward, settings
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False)
        self.critic = Critic(policy.model)
        groups = [
            {"params": list(policy.parameters()), "lr": settings.learning_rate},
            {"params": list(self.critic.parameters()), "lr": settings.critic_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=0.0, fused=True)
        self.sampling = GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=settings.stop_ids or None,
            pad_token_id=settings.pad_id,
            return_dict_in_generate=True,
            output_logits=True,
        )

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]]) -> Rollout:
        """A completion of each prompt."""
        ids, mask = padded_left(prompts, self.settings.pad_id)
        written = self.policy.generate(ids, attention_mask=mask.long(), generation_config=self.sampling)
        completions = written.sequences[:, ids.shape[1] :]
        steps = zip(written.logits, completions.T, strict=True)
        logprobs = torch.stack([-F.cross_entropy(logits, token, reduction="none") for logits, token in steps], 1)
        ended = torch.isin(completions, torch.tensor(self.settings.stop_ids))
        kept = ended.cumsum(1) - ended.long() == 0
        return Rollout.of(ids, mask, completions, kept, logprobs)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Experience:
        """With rewards of tokens, values and advantages."""
        settings, kept = self.settings, rollout.kept
        reference, values = self.logprobs(self.reference, rollout), self.critic(rollout) * kept
        rewards = -settings.kl_coef * (rollout.logprobs - reference) * kept
        rewards[torch.arange(len(kept)), kept.sum(1) - 1] += self.reward(rollout)
        advantages = generalized_advantages(rewards, values, settings.gamma, settings.gae_lambda)
        returns = advantages + values
        plain_sums = generalized_advantages(rewards, values, settings.gamma, 1.0) + values
        self.explained_variance = float(1 - (plain_sums - values)[kept].var() / plain_sums[kept].var())
        advantages = (advantages - advantages[kept].mean()) / (advantages[kept].std() + 1e-8)
        return Experience(**vars(rollout), values=values, advantages=advantages, returns=returns)

    def update(self, experience: Experience) -> None:
        """All epochs on an experience."""
        for _ in range(self.settings.num_iterations):
            for step in torch.split(torch.randperm(len(experience.ids)), self.settings.batch_size):
                tokens = experience.kept[step].sum()
                for part in torch.split(step, self.settings.micro_batch_size):
                    self.backward(experience.rows(part), tokens)
                for model in (self.policy, self.critic):
                    nn.utils.clip_grad_norm_(model.parameters(), self.settings.gradient_clip_val)
                self.optimizer.step()
                self.optimizer.zero_grad()

    def backward(self, batch: Experience, tokens: Tensor) -> None:
        """Add the gradients of a micro-batch; ``tokens`` are those of the whole step."""
        settings, kept = self.settings, batch.kept
        ratio = torch.exp(self.logprobs(self.policy, batch) - batch.logprobs)
        bounded = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        loss = -torch.minimum(ratio * batch.advantages, bounded * batch.advantages)
        torch.autograd.backward(loss[kept].sum() / tokens)
        values = self.critic(batch)
        bounded = torch.clamp(values, batch.values - settings.value_clip, batch.values + settings.value_clip)
        loss = torch.maximum((values - batch.returns).square(), (bounded - batch.returns).square()) / 2
        torch.autograd.backward(settings.value_coef * loss[kept].sum() / tokens)

    def logprobs(self, model: LlamaForCausalLM, batch: Rollout) -> Tensor:
        """Of the completions' tokens, [B, T]."""
        logits = model.lm_head(predicting(model.model, batch))
        targets = batch.completions
        return -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def predicting(body: LlamaModel, batch: Rollout) -> Tensor:
    """The states that predict the completions' tokens, [B, T, hidden size]."""
    read = body(batch.ids, attention_mask=batch.mask.long(), position_ids=positions(batch.mask), use_cache=False)
    states: Tensor = read.last_hidden_state
    return states[:, -batch.kept.shape[1] - 1 : -1]


def positions(mask: Tensor) -> Tensor:
    """The position of each token in its sequence, padding aside."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def generalized_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = d_t + gamma lambda A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t; both are 0 behind the end (1506.02438)."""
    following = F.pad(values[:, 1:], (0, 1))
    deltas, advantage, advantages = rewards + gamma * following - values, torch.zeros(len(values)), []
    for delta in reversed(deltas.unbind(1)):
        advantage = delta + gamma * lam * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1], 1)


def padded_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids [B, P] and which of them are real."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
