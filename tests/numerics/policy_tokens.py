"""A micro-batch of sampled tokens with everything that a loss can ask for."""

import torch

from relax.policy_gradient import PPO_OBJECTIVE, PRESETS, PolicyTokens, Segments, StepTotals

LENGTHS = [5, 1, 12, 3, 7, 2]
MAX_TOKENS = 12
ADVANTAGES = [1.5, -0.7, 0.4, -1.2, 0.9, -2.0]
OBJECTIVES = {name: preset.objective for name, preset in PRESETS.items()} | {"ppo": PPO_OBJECTIVE}


def make_tokens(drift: float = 0.3, dtype: torch.dtype = torch.float64) -> PolicyTokens:
    """``drift``: how far the log-probs have moved since the tokens were sampled."""
    generator = torch.Generator().manual_seed(0)
    old, moved, ref, entropy = torch.randn(4, sum(LENGTHS), generator=generator).to(dtype)  # of numbers that fp32 has
    old = -old.abs() - 0.1
    segments = Segments.of(torch.tensor(LENGTHS))
    return PolicyTokens(
        segments=segments,
        logprobs=(old + drift * moved).requires_grad_(),
        old_logprobs=old,
        advantages=segments.spread(torch.tensor(ADVANTAGES, dtype=dtype)),
        ref_logprobs=old + 0.5 * ref,
        entropy=entropy.abs(),
    )


def totals(micro_batches: int = 1) -> StepTotals:
    return StepTotals.of(LENGTHS, MAX_TOKENS, micro_batches)
