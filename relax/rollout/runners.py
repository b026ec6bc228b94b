"""Computation: the policy's own modules, asked for the next logits of the live rows. Three ways, fast to slow.

Legend: n live rows, V vocabulary, G rows of one prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from relax.rollout import slot_attention
from relax.rollout.prompts import read_prompts, split_prompts
from relax.rollout.scheduler import Group
from relax.rollout.slots import Slots


class Runner(Protocol):
    """A model with a memory of the live rows, which it numbers as ``relax.rollout.rows`` does."""

    mixes_prompts: bool
    """Whether rows of several prompts can live at one time."""

    def admit(self, groups: Sequence[Group]) -> Tensor:
        """Read the prompts of ``groups``, whose rows join; the logits [rows that join, V] of their first tokens."""
        ...

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [n, V] after one more token [n] a row, which stands at ``positions`` [n] of its sequence."""
        ...

    def keep(self, places: Sequence[int]) -> None:
        """Row i becomes what row ``places[i]`` was; the others leave."""
        ...


class SlotRunner:
    """Rows of all prompts in slots of memory that is taken once, finished ones replaced.

    To be used inside ``kept_attention``: between two steps the model attends to slots.

    Args:
        model: a causal language model with ordinary keys and values.
        num_rows: slots.
        num_columns: of each slot, tokens.
        longest_prompt: tokens.
        piece_tokens: prompt tokens that go through the model at one time.
    """

    mixes_prompts = True

    def __init__(
        self, model: PreTrainedModel, *, num_rows: int, num_columns: int, longest_prompt: int, piece_tokens: int
    ) -> None:
        self._model, self._piece_tokens = model, piece_tokens
        self._own_attention = model.config._attn_implementation
        self._size = (num_rows, num_columns, longest_prompt)
        self._slots: Slots | None = None  # until the first prompt shows what a layer's memory looks like

    def admit(self, groups: Sequence[Group]) -> Tensor:
        """See ``Runner``."""
        _use_attention(self._model, self._own_attention)
        lengths = [len(group.prompt) for group in groups]
        copies = [len(group.rows) for group in groups]
        parts = []
        for run in split_prompts(lengths, self._piece_tokens):
            part = slice(run.start, run.stop)
            cache, logits = read_prompts(self._model, [group.prompt for group in groups[part]], self._piece_tokens)
            if self._slots is None:
                self._slots = Slots(*self._size, like=cache)
            self._slots.add(cache, lengths[part], copies[part])
            parts.append(logits.repeat_interleave(torch.tensor(copies[part]).to(logits.device), 0))
        return torch.cat(parts)

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See ``Runner``."""
        assert self._slots is not None
        self._slots.make_room()
        _use_attention(self._model, slot_attention.NAME)
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._slots.mask,
            position_ids=positions[:, None],
            past_key_values=self._slots,
            use_cache=True,
        )
        self._slots.step()
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, places: Sequence[int]) -> None:
        """See ``Runner``."""
        assert self._slots is not None
        self._slots.keep(places)


class EqualLengthRunner:
    """The rows of one prompt at a time, so all are equally long and need neither padding nor mask.

    With the model's own kind of cache, whatever it is; its rows are chosen by transformers' ``reorder_cache``.
    """

    mixes_prompts = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache: DynamicCache | None = None

    def admit(self, groups: Sequence[Group]) -> Tensor:
        """See ``Runner``; one group."""
        (group,) = groups
        self._cache = None
        return self._forward(torch.tensor([[*group.prompt]] * len(group.rows), device=self._model.device))

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See ``Runner``; the model counts positions itself."""
        return self._forward(tokens[:, None])

    def keep(self, places: Sequence[int]) -> None:
        """See ``Runner``."""
        assert self._cache is not None
        self._cache.reorder_cache(torch.tensor([*places], dtype=torch.int64, device=self._model.device))

    def _forward(self, ids: Tensor) -> Tensor:
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits


class RecomputeRunner:
    """The rows of one prompt at a time, read from their beginning for every token: what any causal model can do."""

    mixes_prompts = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._ids = torch.empty(0, 0, dtype=torch.int64)

    def admit(self, groups: Sequence[Group]) -> Tensor:
        """See ``Runner``; one group."""
        (group,) = groups
        self._ids = torch.tensor([[*group.prompt]] * len(group.rows), device=self._model.device)
        return self._forward()

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See ``Runner``; the model counts positions itself."""
        self._ids = torch.cat([self._ids, tokens[:, None]], 1)
        return self._forward()

    def keep(self, places: Sequence[int]) -> None:
        """See ``Runner``."""
        self._ids = self._ids[torch.tensor([*places], dtype=torch.int64, device=self._ids.device)]

    def _forward(self) -> Tensor:
        logits: Tensor = self._model(input_ids=self._ids, use_cache=False).logits[:, -1]
        return logits


@contextmanager
def kept_attention(model: PreTrainedModel) -> Iterator[None]:
    """Whatever attention the model uses meanwhile, it has its own again in the end."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        _use_attention(model, before)


def _use_attention(model: PreTrainedModel, name: str) -> None:
    """Masks need no registering: a ready one passes through transformers as it is."""
    if model.config._attn_implementation != name:  # a walk through all modules
        model.set_attn_implementation(name)
