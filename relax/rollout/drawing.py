"""From logits to a token: filters, and one uniform number against the cumulative distribution.

``torch.multinomial`` draws a random number for every entry of the vocabulary, which on a CPU takes a third of a small
model's decoding step; one number a token is enough. A plain fp32 cumulative sum is not: over 151,936 tokens its
rounding leaves thousands that can never be drawn. So the sum has two levels, both in fp64: over blocks of tokens, and
inside the one block that is hit. Only a block's own mass is added up in fp32: its error scales the block's tokens
alike, by 1e-7, and takes from none its turn.

Legend: n rows, V vocabulary, b blocks.
"""

import torch
from torch import Tensor

BLOCK_TOKENS = 512
_NUCLEUS_CANDIDATES = 1024
"""A nucleus is looked for among so many tokens before the whole vocabulary is sorted for it."""


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """[n, V] with the logits of tokens ``seen`` [n, V] weakened (CTRL, arXiv 1909.05858)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """[n, V], -inf where a token is less likely than the k-th."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return _filtered(logits, threshold)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """[n, V], -inf outside the smallest set of mass ``p`` (nucleus sampling, arXiv 1904.09751)."""
    total = logits.logsumexp(-1, keepdim=True)
    candidates = logits.topk(min(_NUCLEUS_CANDIDATES, logits.shape[-1])).values
    if ((candidates - total).double().exp().sum(-1) < p).any():
        candidates = logits.sort(descending=True).values
    mass = (candidates - total).double().exp()
    inside = mass.cumsum(-1) - mass < p  # a token belongs if those before it fall short; the first one always does
    last = inside.sum(-1, keepdim=True).clamp(min=1) - 1
    return _filtered(logits, candidates.gather(-1, last))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """[n, V], -inf where a token is less than ``p`` times as likely as the most likely one (arXiv 2407.01082)."""
    log_p = torch.tensor(p, dtype=torch.float64).log().item()
    return _filtered(logits, logits.amax(-1, keepdim=True) + log_p)


def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens from softmax(logits), by inversion.

    Args:
        logits: [n, V], fp32 or fp64; -inf for tokens that must not come.
        uniform: [n], fp64, in (0, 1).

    Returns:
        Tokens [n] and their log-probs [n] in the logits' dtype.
    """
    vocabulary = logits.shape[-1]
    width = min(BLOCK_TOKENS, vocabulary)
    top = logits.amax(-1, keepdim=True)
    blocks = logits.new_empty(len(logits), -(-vocabulary // width), width)
    weights = blocks.flatten(1)
    weights[:, vocabulary:] = 0
    torch.sub(logits, top, out=weights[:, :vocabulary]).exp_()
    block, rest, total = _invert(blocks.sum(-1).double(), uniform)
    chosen = blocks.gather(1, block[:, None, None].expand(-1, 1, width))[:, 0].double()
    place, _, _ = _invert(chosen, rest)
    tokens = block * width + place
    logprobs = (logits.gather(-1, tokens[:, None]) - top)[:, 0] - total.log()
    return tokens, logprobs.to(logits.dtype)


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely tokens [n] and their log-probs [n] on softmax(logits [n, V])."""
    top, tokens = logits.max(-1)
    return tokens, top - logits.logsumexp(-1)


def _invert(masses: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where ``uniform`` [n] falls among masses [n, b] (fp64): index, how far into it (0 to 1), total mass."""
    cumulative = masses.cumsum(-1)
    total = cumulative[:, -1]
    # The product may round up to the total, where no index is left.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, target[:, None], right=True).clamp_(max=masses.shape[-1] - 1)  # NaN: the end
    mass = masses.gather(-1, index)
    before = cumulative.gather(-1, index) - mass
    rest = ((target[:, None] - before) / mass).clamp(0, 1)
    return index[:, 0], rest[:, 0], total


def _filtered(logits: Tensor, threshold: Tensor) -> Tensor:
    return logits.masked_fill(logits < threshold, -torch.inf)
