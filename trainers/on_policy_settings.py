"""Settings of on-policy trainers: which values cannot work, and what is built from them."""

import copy
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from relax import causal_lm, checks
from relax.errors import UserError
from relax.lora import has_learned
from relax.policy_gradient import KL_ESTIMATORS
from relax.rollout import Sampling, StopStrings
from relax.rollout.memory import budget_tokens
from relax.rollout.texts import end_of_text_ids

if TYPE_CHECKING:
    from trainers.on_policy import OnPolicyTrainer

NOT_ON_POLICY = {
    "packing_length": None,
    "group_by_length": False,
    "data_workers": 0,
    "val_every_n_steps": None,
}
"""Settings of ``Trainer`` that are about rows to learn from, and their defaults."""
SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def check_rollouts(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """How an iteration is cut, and how tokens are drawn.

    Args:
        own: keywords of ``OnPolicyTrainer``, defaults included.
        given: what was given, of any kind.

    Raises:
        UserError: a value out of range, numbers that do not divide, or a setting that only rows to learn from have.
    """
    for name, idle in NOT_ON_POLICY.items():
        if given.get(name, idle) != idle:
            raise UserError(
                f"--{name}={given[name]} is about rows to learn from, which a policy writes itself; drop it"
            )
    if given.get("val_dataset") is not None:
        raise UserError(
            "val_dataset holds rows to learn from, which a policy writes itself; give held-out prompts to "
            "callbacks.Evaluate"
        )
    names = ("num_generations", "steps_per_generation", "num_iterations", "max_prompt_length", "batch_size")
    checks.positive(**{name: own[name] for name in (*names, "temperature")})
    checks.between(0, 1, max_dropped_share=own["max_dropped_share"])
    checks.between(0, 1000, kl_coef=own["kl_coef"])
    checks.one_of(KL_ESTIMATORS, kl_estimator=own["kl_estimator"])
    completions, group = own["batch_size"] * own["steps_per_generation"], own["num_generations"]
    if completions % group:
        raise UserError(
            f"--batch_size x --steps_per_generation must be whole groups of --num_generations={group} completions, got "
            f"{completions}; try --batch_size={-(-own['batch_size'] // group) * group}"
        )
    Sampling(**{name: own[name] for name in SAMPLING})
    if isinstance(own["stop_strings"], str):
        raise UserError(f"--stop_strings must be a list of texts, got the text {own['stop_strings']!r}")
    budget_tokens(own["rollout_memory"], 1, torch.device("cpu"))  # can it be read?
    budget, new = given.get("max_tokens_per_micro_batch"), own["max_new_tokens"]
    if budget is not None and budget <= new:
        raise UserError(
            f"--max_tokens_per_micro_batch={budget} must hold a prompt and --max_new_tokens={new}; raise the one or "
            "lower the other"
        )


def check_longest(trainer: "OnPolicyTrainer") -> None:
    """Whether the longest prompt and its completion fit into a micro-batch, now that prompts are there.

    Raises:
        UserError: they do not.
    """
    budget, longest = trainer.max_tokens_per_micro_batch, trainer.longest_row()
    if budget is not None and budget < longest:
        raise UserError(
            f"--max_tokens_per_micro_batch={budget} must hold the longest prompt and --max_new_tokens="
            f"{trainer.sampling.max_new_tokens}, {longest} tokens; raise it or shorten them"
        )


def build_sampling(own: Mapping[str, Any], model: nn.Module, tokenizer: Any) -> Sampling:
    """How completions are drawn and where they end.

    Raises:
        UserError: a value out of range.
    """
    stop_ids = own["stop_token_ids"]
    if stop_ids is None:
        stop_ids = end_of_text_ids(model, tokenizer)
    size = causal_lm.base_model(model).get_input_embeddings().num_embeddings
    if impossible := [i for i in own["stop_token_ids"] or [] if not 0 <= i < size]:
        raise UserError(f"--stop_token_ids must be tokens of the model, 0 to {size - 1}, got {impossible[0]}")
    strings = own["stop_strings"]
    if not stop_ids and not strings:
        warnings.warn(
            "the model has no end-of-text token, so that every completion is --max_new_tokens long; "
            "give --stop_token_ids or --stop_strings",
            stacklevel=3,
        )
    return Sampling(
        **{name: own[name] for name in SAMPLING},
        stop_ids=tuple(stop_ids),
        stop_when=StopStrings(tokenizer, strings) if strings else None,
    )


def frozen_reference(model: nn.Module, given: nn.Module | None, kl_coef: float) -> nn.Module | None:
    """A model that stays as it is: ``given``, or a copy; None under an adapter, which can be switched off instead.

    None, too, where there is no KL penalty.
    """
    if not kl_coef:
        if given is not None:
            warnings.warn("reference has no effect without --kl_coef", stacklevel=4)
        return None
    if given is None and causal_lm.is_adapted(model):
        if has_learned(model):
            warnings.warn(
                "--kl_coef pulls towards the base model without the adapter, which is not where this adapter begins; "
                "to stay near its beginning, merge it into the model and train a new one with --lora_r",
                stacklevel=4,
            )
        return None
    return (copy.deepcopy(model) if given is None else given).requires_grad_(False).eval()
