"""Computation: the policy's own modules, asked for the next logits of the live rows. Ways to do it, fast to slow.

Legend: n live rows, V vocabulary, G rows of one prompt.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from relax.rollout.columns import FixedColumns, SlicedColumns
from relax.rollout.graphs import Record
from relax.rollout.prompts import PromptReader
from relax.rollout.scheduler import Group
from relax.rollout.slots import Slots, layer_windows
from relax.rollout.steps import FixedStep, Step, next_logits


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
        record: how decoding steps are recorded; None: they are not.
    """

    mixes_prompts = True

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_rows: int,
        num_columns: int,
        longest_prompt: int,
        piece_tokens: int,
        record: Record | None = None,
    ) -> None:
        self._model, self._reader, self._record = model, PromptReader(model, piece_tokens), record
        self._num_rows, self._num_columns, self._longest_prompt = num_rows, num_columns, longest_prompt
        self._slots: Slots | None = None  # until the first prompt shows what a layer's memory looks like
        self._step: Step | None = None

    def admit(self, groups: Sequence[Group]) -> Tensor:
        """See ``Runner``."""
        logits = []
        for part in self._reader.read(groups):
            if self._slots is None:
                self._slots, self._step = self._take_memory(part.cache)
            self._slots.add(part.cache, part.lengths, part.copies)
            logits.append(part.logits)
        return torch.cat(logits)

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See ``Runner``."""
        assert self._slots is not None
        assert self._step is not None
        self._slots.make_room()
        logits = self._step(tokens, positions)
        self._slots.advance()
        return logits

    def keep(self, places: Sequence[int]) -> None:
        """See ``Runner``."""
        assert self._slots is not None
        self._slots.keep(places)

    def _take_memory(self, like: DynamicCache) -> tuple[Slots, Step]:
        model, size, at = self._model, self._num_columns, self._longest_prompt
        if self._record is None:
            slots = Slots(self._num_rows, SlicedColumns(size, at), like)
            return slots, partial(next_logits, model, slots)
        types = model.config.get_text_config().to_dict().get("layer_types")
        columns = FixedColumns(size, at, layer_windows(like), types, model.device)
        slots = Slots(self._num_rows, columns, like)
        return slots, FixedStep(model, slots, columns, self._num_rows, self._record)


class PromptRunner:
    """Reads prompts and decodes nothing, for completions of one token: they need no memory."""

    mixes_prompts = True

    def __init__(self, model: PreTrainedModel, *, piece_tokens: int) -> None:
        self._reader = PromptReader(model, piece_tokens)

    def admit(self, groups: Sequence[Group]) -> Tensor:
        """See ``Runner``."""
        return torch.cat([part.logits for part in self._reader.read(groups)])

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See ``Runner``; never called."""
        raise AssertionError("a completion has one token here")

    def keep(self, places: Sequence[int]) -> None:
        """See ``Runner``."""
        assert not places


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
