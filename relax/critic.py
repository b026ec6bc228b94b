"""The value function of PPO: what completions will still earn, read off hidden states by a linear head.

Three kinds, by what the head sits on: a model of its own, an adapter beside the policy's, or the policy itself.

Legend: K targets of a micro-batch, D hidden size.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax import causal_lm
from relax.adapters import CRITIC, adapter_weights, add_adapter, using_adapter
from relax.data.batching.batches import Batch
from relax.errors import UserError
from relax.lora import enable_gradient_checkpointing
from relax.seeding import mix
from relax.sequence_classifier import score_head


class Critic(nn.Module, ABC):
    """V of the state that predicts each target: before the token is chosen.

    Args:
        policy: the model that writes.
        size: D.

    Attributes:
        head: D -> 1, in full precision; 0 at first, so that training starts from the plain returns, or a reward
            model's.
        kind: one of ``CRITICS``.
    """

    kind: ClassVar[str]

    def __init__(self, policy: nn.Module, size: int) -> None:
        super().__init__()
        self._policy = (policy,)  # in a tuple, where torch does not look: it is not the critic's to train
        self.head = nn.Linear(size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def policy(self) -> nn.Module:
        """The model that writes."""
        return self._policy[0]

    @abstractmethod
    def hidden_states(self, batch: Batch) -> Tensor:
        """The states [K, D] that predict ``batch.targets``."""

    @property
    def shares_states(self) -> bool:
        """The states are the policy's own."""
        return False

    def learned(self) -> list[nn.Parameter]:
        """What is trained of it and is not the policy's."""
        return [p for p in self.parameters() if p.requires_grad]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of what is no part of the policy, as of the policy's.

        Raises:
            UserError: the architecture does not support it.
        """

    def prepare(self, *, packed: bool) -> None:
        """Before a run: read micro-batches that are laid out for the policy.

        Raises:
            UserError: it cannot.
        """

    def restore(self) -> None:
        """After a run: undo ``prepare``."""

    def forward(self, batch: Batch, policy_states: Tensor | None = None) -> Tensor:
        """The values [K], at least fp32.

        Args:
            batch: whose targets.
            policy_states: [K, D] of the policy, where they are known already; only a shared critic can use them.
        """
        states = policy_states if self.shares_states else None
        if states is None:
            states = self.hidden_states(batch)
        with torch.autocast(states.device.type, enabled=False):  # half precision is too coarse to regress to returns
            dtype = torch.promote_types(states.dtype, torch.float32)
            bias = None if self.head.bias is None else self.head.bias.to(dtype)
            return F.linear(states.to(dtype), self.head.weight.to(dtype), bias).squeeze(-1)


class SeparateCritic(Critic):
    """A model of its own: nothing that it learns disturbs the policy.

    Args:
        policy: the model that writes.
        body: a transformers model without a head.
    """

    kind = "separate"

    def __init__(self, policy: nn.Module, body: nn.Module) -> None:
        super().__init__(policy, hidden_size(body))
        self.body = body.requires_grad_(True)

    def enable_gradient_checkpointing(self) -> None:
        """As in the parent."""
        enable_gradient_checkpointing(self.body)

    def prepare(self, *, packed: bool) -> None:
        """As in the parent."""
        if packed:
            causal_lm.isolate_companion("the critic", self.body)

    def restore(self) -> None:
        """As in the parent."""
        causal_lm.restore_attention(self.body)

    def hidden_states(self, batch: Batch) -> Tensor:
        """As in the parent."""
        return causal_lm.hidden_states(self.body, batch)


class AdapterCritic(Critic):
    """One more LoRA adapter on the policy's frozen backbone.

    Args:
        policy: a PEFT model, which gets the adapter.
        seed: of its first weights, whatever was drawn before.
    """

    kind = "adapter"

    def __init__(self, policy: nn.Module, seed: int = 0) -> None:
        super().__init__(policy, hidden_size(policy))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(seed, CRITIC))
            add_adapter(policy, CRITIC)
        self._adapter = list(adapter_weights(policy, CRITIC).values())  # found once: every micro-batch asks for them

    def hidden_states(self, batch: Batch) -> Tensor:
        """As in the parent."""
        with using_adapter(self.policy, CRITIC):
            return causal_lm.hidden_states(self.policy, batch)

    def learned(self) -> list[nn.Parameter]:
        """As in the parent: with the adapter, which lies in the policy's modules."""
        return [*(p for p in self._adapter if p.requires_grad), *super().learned()]


class SharedCritic(Critic):
    """A head on the policy's own states: one model and one pass for both, and the value loss moves the policy, too.

    Args:
        policy: the model that writes.
    """

    kind = "shared"

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy, hidden_size(policy))

    @property
    def shares_states(self) -> bool:
        """As in the parent."""
        return True

    def hidden_states(self, batch: Batch) -> Tensor:
        """As in the parent."""
        return causal_lm.hidden_states(self.policy, batch)


def build_critic(kind: str | None, policy: nn.Module, model: nn.Module | None = None, *, seed: int = 0) -> Critic:
    """The critic of a policy.

    Args:
        kind: one of ``CRITICS``; default: an adapter under a policy with one, else a separate model.
        policy: the model that writes.
        model: what a separate critic starts from; default: a copy of the policy. Of a sequence classifier with one
            label, such as a reward model, the head is taken, too.
        seed: of fresh weights.

    Raises:
        UserError: the kind does not go with the policy, or ``model`` is no value function of its tokens.
    """
    kind = kind or ("adapter" if causal_lm.is_adapted(policy) and model is None else "separate")
    if model is not None and kind != "separate":
        raise UserError(f"--critic_model goes with --critic=separate, got --critic={kind}; drop one of the two")
    if kind == "adapter" and not causal_lm.is_adapted(policy):
        raise UserError("--critic=adapter needs an adapter beside it; add --lora_r=16, or use --critic=separate")
    return _KINDS[kind](policy, model, seed)


def hidden_size(model: nn.Module) -> int:
    """D"""
    return int(causal_lm.base_model(model).config.get_text_config().hidden_size)


def _separate(policy: nn.Module, model: nn.Module | None) -> Critic:
    if model is None:
        return SeparateCritic(policy, _copied_body(policy))
    if model is policy:
        raise UserError("critic_model is the policy itself; leave it out for a copy, or use --critic=shared")
    inner = causal_lm.base_model(model)
    causal_lm.check_companion("--critic_model", model, policy)
    if causal_lm.is_adapted(model):
        raise UserError("--critic_model must be a whole model, got one with an adapter; merge it first")
    critic = SeparateCritic(policy, causal_lm.body(inner))
    if inner.get_output_embeddings() is None and causal_lm.body(inner) is not inner:
        critic.head = _value_head(inner)
    return critic


def _value_head(classifier: nn.Module) -> nn.Linear:
    """That of a sequence classifier of one output."""
    head = score_head(classifier)
    if not isinstance(head, nn.Linear):
        raise UserError(f"--critic_model must give its score by one linear layer, got {type(head).__name__}")
    return head.to(torch.promote_types(head.weight.dtype, torch.float32)).requires_grad_(True)


_KINDS: dict[str, Callable[[nn.Module, nn.Module | None, int], Critic]] = {
    "adapter": lambda policy, model, seed: AdapterCritic(policy, seed),
    "separate": lambda policy, model, seed: _separate(policy, model),
    "shared": lambda policy, model, seed: SharedCritic(policy),
}
CRITICS = tuple(_KINDS)


def _copied_body(policy: nn.Module) -> nn.Module:
    """A copy of the policy as it is now, adapter merged, without its head."""
    from peft import PeftModel

    from relax.export import merged_model

    if not isinstance(policy, PeftModel):
        return copy.deepcopy(causal_lm.body(causal_lm.base_model(policy)))
    if not all(p.is_floating_point() for p in policy.parameters()):
        raise UserError("--critic=separate cannot be copied from a quantized model; use --critic=adapter")
    # Weights that the adapter leaves alone are still the policy's own.
    return copy.deepcopy(causal_lm.body(merged_model(policy)))
