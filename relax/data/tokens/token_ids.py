"""Texts -> token ids, as a tokenizer gives them. Knows no rows, no loss mask and no chat template."""

import re
from functools import cached_property
from string import ascii_letters, digits
from typing import TYPE_CHECKING, TypeAlias

from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids: TypeAlias = list[int]
_LINE_FEED = "\n"


class TokenIds:
    """What is asked of a tokenizer, and what is known of it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.stop: Ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def require_eos(self) -> None:
        """Plain text ends with the eos token.

        Raises:
            UserError: the tokenizer has none.
        """
        if not self.stop:
            raise UserError("the tokenizer has no eos token, so the model could not learn to stop: set its eos_token")

    def tokenize(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, as it stands: nothing put before or behind it. Equal texts are tokenized once."""
        if not texts:
            return []
        unique = [*dict.fromkeys(texts)]
        encoded = self.tokenizer(unique, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: dict[str, Ids] = dict(zip(unique, encoded["input_ids"], strict=True))
        return [ids[text] for text in texts]

    def decode(self, ids: Ids) -> str:
        """The text of the ids, special tokens included."""
        text: str = self.tokenizer.decode(ids)
        return text

    @cached_property
    def vocabulary(self) -> int:
        """One more than the highest id."""
        return max(len(self.tokenizer), 1 + max(self.added.values(), default=0))

    @cached_property
    def added(self) -> dict[str, int]:
        """The tokens that are looked for in a text before all else, special ones mostly, with their ids."""
        return {token.content: at for at, token in self.tokenizer.added_tokens_decoder.items()}

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """The ids of :attr:`added`."""
        return frozenset(self.added.values())

    @cached_property
    def any_added(self) -> re.Pattern[str]:
        """Finds the tokens of :attr:`added` in a text, the longest one at each place."""
        longest_first = sorted(filter(None, self.added), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def lead(self) -> str:
        """What to tokenize a text behind if it continues another: nothing, or a line feed whose ids are then taken off.

        SentencePiece puts a space before every text, which one that continues another does not have.
        """
        for letter in ascii_letters + digits:
            behind, lead, bare = self.tokenize([_LINE_FEED + letter, _LINE_FEED, letter])
            if behind == lead + bare:
                return ""
        return _LINE_FEED

    def behind_lead(self, text: str, ids: Ids) -> Ids:
        """The ids of ``text``, from those of the same behind :attr:`lead`."""
        if ids[: len(self._lead_ids)] == self._lead_ids:
            return ids[len(self._lead_ids) :]
        return self.tokenize([text])[0]  # a token holds the lead and more

    @cached_property
    def _lead_ids(self) -> Ids:
        return self.tokenize([self.lead])[0]

    @cached_property
    def opening(self) -> Ids:
        """What the tokenizer by itself puts before a text: nothing, or its bos token."""
        for letter in ascii_letters + digits:
            bare = self.tokenize([letter])[0]
            if bare:
                whole: Ids = self.tokenizer(letter)["input_ids"]
                return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])
        return []
