"""The load-balancing loss of a mixture of experts, a sequence at a time. The routers' logits come from the model.

Over a whole batch the loss, a product of two means, would depend on how an optimizer step is cut into micro-batches.
Over single sequences it does not, and each sequence is asked for balance of its own.

Legend: N tokens of a micro-batch, padding included; S sequences; E experts, k of them chosen for a token; L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def balance_losses(router_logits: Sequence[Tensor], members: Tensor, experts_per_token: int) -> Tensor:
    """E sum_e f_e P_e of each sequence, [S]: k where the experts are used evenly, at most E.

    f_e is the number of times e is chosen a token, a mean over the sequence's tokens and the L layers; P_e the mean of
    its probability. Switch Transformer (arXiv 2101.03961, equations 4 to 6) for each sequence instead of each batch, as
    DeepSeek-V3 (arXiv 2412.19437, equations 17 to 20); theirs is 1 / k of it. No gradient passes through f.

    Args:
        router_logits: L tensors [N, E].
        members: [S, N], bool: which tokens each sequence has; padding is part of none.
        experts_per_token: k.
    """
    first, num_layers = router_logits[0], len(router_logits)
    mean_p = first.new_zeros(first.shape, dtype=torch.promote_types(first.dtype, torch.float32))  # over the layers
    mean_chosen = torch.zeros_like(mean_p)
    for logits in router_logits:
        p = logits.softmax(-1, dtype=mean_p.dtype)
        experts = p.topk(experts_per_token).indices  # [N, k]
        mean_chosen.scatter_add_(-1, experts, torch.full_like(experts, 1 / num_layers, dtype=mean_p.dtype))
        mean_p = mean_p + p / num_layers
    with torch.autocast(first.device.type, enabled=False):  # sums over tokens, which half precision loses
        own, num_tokens = members.to(mean_p.dtype), members.sum(-1, keepdim=True)
        chosen_by_sequence, p_by_sequence = (own @ x / num_tokens for x in (mean_chosen, mean_p))  # [S, E]
    return first.shape[-1] * (chosen_by_sequence * p_by_sequence).sum(-1)
