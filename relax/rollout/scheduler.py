"""Decision: which prompts start now. It computes nothing and knows no model."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relax.rollout.rows import Row


@dataclass(frozen=True)
class Group:
    """A distinct prompt and the completions that it still needs; the model reads it once for all of them."""

    prompt: Sequence[int]
    rows: list[Row]


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Rows of equal prompts together, long prompts first: neighbours in the queue then need little padding."""
    groups: dict[tuple[int, ...], Group] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt), Group(row.prompt, [])).rows.append(row)
    return sorted(groups.values(), key=lambda group: -len(group.prompt))


class Scheduler:
    """The queue in front of ``capacity`` places.

    A group starts as a whole, because its prompt is read once. One that is larger than all places is cut. Starting
    costs a pass over prompts, so waiting ones start several at a time: when a quarter of the places is free.

    Args:
        groups: in the order in which they shall start.
        capacity: rows that are decoded at one time.
        mixes_prompts: whether rows of several prompts can be; else one group starts when nothing else lives.
    """

    def __init__(self, groups: Iterable[Group], capacity: int, mixes_prompts: bool) -> None:
        assert capacity > 0
        self._queue = deque(part for group in groups for part in _cut(group, capacity))
        self._capacity, self._mixes_prompts = capacity, mixes_prompts

    def __len__(self) -> int:
        """Groups that wait."""
        return len(self._queue)

    def admit(self, num_live: int) -> list[Group]:
        """Take out of the queue what starts now."""
        free = self._capacity - num_live
        if num_live and (not self._mixes_prompts or free < self._capacity / 4):
            return []
        admitted: list[Group] = []
        while self._queue and len(self._queue[0].rows) <= free:
            free -= len(self._queue[0].rows)
            admitted.append(self._queue.popleft())
            if not self._mixes_prompts:
                break
        return admitted


def _cut(group: Group, size: int) -> list[Group]:
    return [Group(group.prompt, group.rows[i : i + size]) for i in range(0, len(group.rows), size)]
