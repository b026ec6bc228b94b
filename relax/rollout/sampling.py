"""How tokens are drawn and where a completion ends: settings. Drawing is ``relax.rollout.drawing``'s."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relax.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """The distribution of a token, applied in this order, which is transformers'.

    Repetition penalty, stop tokens barred before ``min_new_tokens``, temperature, top-k, top-p, min-p.

    Raises:
        UserError: a value is out of range.
    """

    max_new_tokens: int
    """A completion of so many tokens is cut off."""
    min_new_tokens: int = 0
    """No stop token among the first so many tokens."""
    temperature: float = 1.0
    """Divides the logits."""
    top_k: int | None = None
    """Only the k most likely tokens (and those exactly as likely as the last of them)."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this mass (and those exactly as likely as the last of them)."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of prompt and completion get less likely: positive logits divided by it, others multiplied."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, end-of-text among them."""
    stop_when: Callable[[Sequence[int]], bool] | None = None
    """Asked after each token, with the completion so far, whether it ends here; see ``StopStrings``."""
    greedy: bool = False
    """The most likely token instead of a random one; temperature, top-k, top-p and min-p do not matter then."""

    def __post_init__(self) -> None:
        """Check every value."""
        rules = [
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "from 0 to --max_new_tokens"),
            ("temperature", 0 < self.temperature < float("inf"), "above 0; for the most likely token use --greedy"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1; drop it for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 means none"),
            ("stop_ids", all(token >= 0 for token in self.stop_ids), "token ids, none negative"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"--{name} must be {rule}; got {vars(self)[name]}")
        defaults = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0}
        ignored = [f"--{name}" for name, default in defaults.items() if vars(self)[name] != default]
        if self.greedy and ignored:
            warnings.warn(f"--greedy takes the most likely token: {', '.join(ignored)} has no effect", stacklevel=3)
