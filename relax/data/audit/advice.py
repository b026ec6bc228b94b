"""What in an audit is likely a mistake, one line each with what to do about it. The numbers come from elsewhere."""

from collections.abc import Callable

from relax.data.audit.figures import Audit
from relax.data.audit.shares import rows_of, share_of

# From which share on a figure is worth a warning; below, it is only listed.
TRUNCATED = 0.05
DUPLICATES = 0.05
UNKNOWN = 0.001
TRAINED = 0.01
PADDING = 0.25
PASSES = 4
"""Epochs over the same tokens that are nearly as good as new tokens (arXiv 2305.16264)."""


def warnings_of(audit: Audit) -> list[str]:
    """The warnings that apply, the gravest first."""
    return [line for rule in _RULES if (line := rule(audit))]


def _end_of_turn(audit: Audit) -> str | None:
    if not audit.without_end_of_turn:
        return None
    return (
        f"not ending on a trained end of turn: {rows_of(audit.without_end_of_turn, audit.rows_kept)}; the model does "
        "not learn to stop there, so close each answer in the chat template, or in the rows if they come tokenized"
    )


def _trained(audit: Audit) -> str | None:
    if audit.trained_share >= TRAINED:
        return None
    return (
        f"trained: only {share_of(audit.trained_tokens, audit.tokens)} of the tokens; look at the marked row, shorten "
        "the prompts, or change --train_on"
    )


def _truncated(audit: Audit) -> str | None:
    if audit.truncated <= TRUNCATED * audit.rows_kept:
        return None
    return (
        f"cut to --max_length: {rows_of(audit.truncated, audit.rows_kept)}; raise it, or leave such rows out with "
        "--truncation=drop"
    )


def _double_bos(audit: Audit) -> str | None:
    if not audit.double_bos:
        return None
    return (
        f"beginning with the bos token twice: {rows_of(audit.double_bos, audit.rows_kept)}; the model was never shown "
        "that, so take one out of the rows or of the chat template"
    )


def _unknown(audit: Audit) -> str | None:
    if audit.unknown_tokens <= UNKNOWN * audit.tokens:
        return None
    return (
        f"unknown to the tokenizer: {share_of(audit.unknown_tokens, audit.tokens)} of the tokens; check that it is the "
        "model's own, and the encoding of the rows"
    )


def _duplicates(audit: Audit) -> str | None:
    if audit.duplicates <= DUPLICATES * audit.rows_kept:
        return None
    repeats = rows_of(audit.duplicates, audit.rows_kept)
    return f"equal to an earlier row: {repeats}; take such rows out unless they are meant to weigh more"


def _repeated_parts(audit: Audit) -> str | None:
    worn = [f"{part.name} {part.passes:.0f} times" for part in audit.parts if part.passes > PASSES]
    return f"read over and over in one epoch: {', '.join(worn)}; lower the weight in --dataset" if worn else None


def _padding(audit: Audit) -> str | None:
    if audit.fill is None or audit.fill.packed or 1 - audit.fill.share < PADDING:
        return None
    return (
        f"padding: {1 - audit.fill.share:.0%} of what is computed; use --layout=packed if the model can, or "
        "--group_by_length"
    )


_RULES: tuple[Callable[[Audit], str | None], ...] = (
    *(_end_of_turn, _trained, _truncated, _double_bos),
    *(_unknown, _duplicates, _repeated_parts, _padding),
)
