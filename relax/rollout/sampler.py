"""One more token for every live row: ``Sampling`` applied to logits. The arithmetic is ``relax.rollout.drawing``'s."""

import torch
from torch import Tensor

from relax.rollout.drawing import draw, keep_min_p, keep_top_k, keep_top_p, most_likely, penalize_repetition
from relax.rollout.noise import uniforms
from relax.rollout.rows import LiveRows
from relax.rollout.sampling import Sampling


class Sampler:
    """Draws as ``sampling`` says, in fp32, or fp64 where the logits are."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)

    def __call__(self, logits: Tensor, live: LiveRows) -> tuple[Tensor, Tensor]:
        """Tokens [n] and their log-probs [n] for logits [n, V] of the live rows."""
        logits = self._shaped(logits.to(torch.promote_types(logits.dtype, torch.float32)), live)
        if self._sampling.greedy:
            return most_likely(logits)
        return draw(self._filtered(logits), uniforms(live.keys, live.ages))

    def _shaped(self, logits: Tensor, live: LiveRows) -> Tensor:
        """What depends on the row's own past."""
        settings = self._sampling
        if settings.repetition_penalty != 1:
            logits = penalize_repetition(logits, live.seen, settings.repetition_penalty)
        if settings.min_new_tokens and settings.stop_ids:
            barred = torch.where(live.ages < settings.min_new_tokens, -torch.inf, 0.0).to(logits.dtype)
            logits = logits.index_add(1, self._stop_ids, barred[:, None].expand(-1, len(self._stop_ids)))
        return logits

    def _filtered(self, logits: Tensor) -> Tensor:
        settings = self._sampling
        if settings.temperature != 1:
            logits = logits / settings.temperature
        if settings.top_k is not None:
            logits = keep_top_k(logits, settings.top_k)
        if settings.top_p < 1:
            logits = keep_top_p(logits, settings.top_p)
        if settings.min_p > 0:
            logits = keep_min_p(logits, settings.min_p)
        return logits
