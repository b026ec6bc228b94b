"""Which columns of the slots a step writes and looks at: slices, or the same memory addresses in every step.

Legend: R rows, n live rows, H heads, S columns, D head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Mask = Tensor | Mapping[str, Tensor]
"""[n, 1, 1, columns], to be added to attention scores; one for each type of layer where these differ."""


class Columns(ABC):
    """Shared by all layers.

    Attributes:
        size: S.
        at: the next column to write.
        first: the first column that a live row has.
    """

    def __init__(self, size: int, at: int) -> None:
        self.size, self.at, self.first = size, at, at

    @abstractmethod
    def write(self, memory: Tensor, states: Tensor) -> None:
        """Put the new token's ``states`` [n, H, 1, D] into column ``at`` of ``memory`` [R, H, S, D]."""

    @abstractmethod
    def seen(self, memory: Tensor, rows: int, window: int | None) -> Tensor:
        """What the new token may look at, but for the mask: [rows, H, columns, D]."""

    @abstractmethod
    def mask(self, memory: Tensor, rows: int) -> Mask:
        """Of ``memory`` [R, 1, 1, S], the part that goes with ``seen``."""


class SlicedColumns(Columns):
    """As few columns as can be: those from the first live one, or a window, to the one that is written."""

    def write(self, memory: Tensor, states: Tensor) -> None:
        """See ``Columns``."""
        memory[: len(states), :, self.at] = states[:, :, 0]

    def seen(self, memory: Tensor, rows: int, window: int | None) -> Tensor:
        """See ``Columns``."""
        end = self.at + 1
        return memory[:rows, :, self.first if window is None else max(self.first, end - window) : end]

    def mask(self, memory: Tensor, rows: int) -> Tensor:
        """See ``Columns``; attention takes the last columns of it, as many as its window has."""
        return memory[:rows, :, :, self.first : self.at + 1]


class FixedColumns(Columns):
    """The first ``shown`` columns, and the one to write in a tensor: a recorded step does the right thing later, too.

    Args:
        size: S.
        at: see ``Columns``.
        windows: of each layer.
        layer_types: of each layer, as transformers calls them; needed where windows differ.
        device: of the memory.

    Raises:
        ValueError: windows differ and the model does not say which layers are alike.
    """

    def __init__(
        self,
        size: int,
        at: int,
        windows: Sequence[int | None],
        layer_types: Sequence[str] | None,
        device: torch.device,
    ) -> None:
        super().__init__(size, at)
        self.shown = size
        self._place = torch.tensor([at], device=device)
        self._numbers = torch.arange(size, device=device)
        self._window = windows[0] if len({*windows}) == 1 else None
        self._windows: dict[str, int | None] = {}
        if len({*windows}) > 1:
            if layer_types is None:
                raise ValueError("has windows that differ by layer, without layer_types in its config")
            self._windows = dict(zip(layer_types, windows, strict=True))

    def show(self, columns: int) -> None:
        """Let the next step look at the first ``columns`` columns and write ``at``."""
        self.shown = columns
        self._place.fill_(self.at)

    def write(self, memory: Tensor, states: Tensor) -> None:
        """See ``Columns``."""
        memory[: len(states)].index_copy_(2, self._place, states)

    def seen(self, memory: Tensor, rows: int, window: int | None) -> Tensor:
        """See ``Columns``; what lies outside the window is masked."""
        return memory[:rows, :, : self.shown]

    def mask(self, memory: Tensor, rows: int) -> Mask:
        """See ``Columns``."""
        shown = memory[:rows, :, :, : self.shown]
        if self._windows:
            return {kind: self._narrowed(shown, window) for kind, window in self._windows.items()}
        return self._narrowed(shown, self._window)

    def _narrowed(self, mask: Tensor, window: int | None) -> Tensor:
        if window is None:
            return mask
        return mask.masked_fill(self._numbers[: self.shown] <= self._place - window, -torch.inf)
