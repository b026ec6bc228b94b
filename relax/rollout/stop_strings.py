"""Ending a completion at a piece of text: the one place in the engine that meets a tokenizer, and only if asked to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopStrings:
    """``Sampling.stop_when``: whether the token that came last completes one of ``strings``.

    What comes before is not searched again. A completion keeps the token, and so whatever the token says beyond the
    string.

    Raises:
        UserError: a string is empty.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", strings: Sequence[str]) -> None:
        if not all(strings):
            raise UserError(f"--stop_strings must not hold an empty string; got {list(strings)}")
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        # A token has at least a byte, so the string lies within as many tokens as it has bytes; one more, because
        # some tokenizers drop the space before the first token that they decode.
        self._window_tokens = max((len(string.encode()) for string in strings), default=0) + 1

    def __call__(self, completion: Sequence[int], /) -> bool:
        """Whether ``completion`` (token ids) ends here."""
        tail = self._tokenizer.decode(completion[-self._window_tokens :], skip_special_tokens=False)
        return any(string in tail for string in self._strings)
