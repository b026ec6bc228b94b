"""What a mixture-of-experts model says of its router, and whether its balance loss is the one ReLax computes.

The loss itself is ``relax.losses.balance_losses``.
"""

from typing import Any

import torch
from torch import nn

from relax import causal_lm
from relax.errors import UserError
from relax.losses import balance_losses
from relax.modes import evaluating


def router_coefficient(model: nn.Module, given: float | None) -> float:
    """The factor of the balance loss: ``given``, else what the model's configuration wants, else 0.

    transformers adds the loss where ``output_router_logits`` is set, which it is in few published configurations.

    Raises:
        UserError: one above 0 is given for a model without routers.
    """
    config = _config(model)
    if given and "output_router_logits" not in config:
        raise _refusal(model, "has no routers")
    if given is None and config.get("output_router_logits"):
        given = config.get("router_aux_loss_coef")
    return given or 0.0


def experts_per_token(model: nn.Module) -> int:
    """How many experts of a layer compute a token, as the configuration says.

    Raises:
        UserError: it does not say so.
    """
    experts = _config(model).get("num_experts_per_tok")
    if experts is None:
        raise _refusal(model, "does not say num_experts_per_tok in its configuration")
    return int(experts)


def check_balance_loss(model: nn.Module) -> None:
    """Refuse a model whose own balance loss of a sequence is another one, or that has none (DeepSeek-V3's is a bias).

    Raises:
        UserError: says which.
    """
    inner = causal_lm.base_model(model)
    num_tokens = 8
    ids = (torch.arange(num_tokens, device=inner.device) * 7 + 1).remainder(inner.get_input_embeddings().num_embeddings)
    with evaluating(model), torch.no_grad():
        output = inner(input_ids=ids[None], use_cache=False, output_router_logits=True)
        theirs = output.get("aux_loss")
        if theirs is None:
            raise _refusal(model, "has no loss that balances its routers")
        everything = torch.ones(1, num_tokens, dtype=torch.bool, device=ids.device)
        logits = [layer.flatten(0, -2) for layer in output.router_logits]
        ours = balance_losses(logits, everything, experts_per_token(model))[0]
    if not torch.isclose(ours.float(), theirs.float(), rtol=1e-2):
        raise _refusal(model, "balances its routers by a loss that ReLax does not know")


def _config(model: nn.Module) -> dict[str, Any]:
    return causal_lm.base_model(model).config.get_text_config().to_dict()


def _refusal(model: nn.Module, reason: str) -> UserError:
    name = type(causal_lm.base_model(model)).__name__
    return UserError(f"--router_aux_loss_coef: {name} {reason}; give 0 or drop the flag")
