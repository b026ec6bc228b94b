"""How a step is cut: nothing lost, within the budget, ranks with alike work."""

import numpy as np
import pytest
from conftest import build_unequal_rows
from hypothesis import given
from hypothesis import strategies as st

from relax.data.batching.layout import Layout
from relax.data.batching.planning import Batching, Plan, Step
from relax.errors import UserError


def whole_step(lengths: np.ndarray) -> Step:
    return Step(np.arange(len(lengths)), np.arange(len(lengths)))


def computed(lengths: np.ndarray, part: list[int], padded: bool) -> int:
    return int(len(part) * lengths[part].max() if padded else lengths[part].sum()) if part else 0


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


@given(LENGTHS, st.integers(1, 3), st.booleans(), st.integers(60, 200))
def test_a_budget_of_tokens_is_kept_and_no_row_lost(
    lengths: np.ndarray, world_size: int, padded: bool, budget: int
) -> None:
    step = whole_step(lengths)
    layout = Layout(len(lengths), None, 1, world_size, max_tokens=budget, padded=padded).holding([step], lengths)
    cut = layout.cut(step, lengths)
    assert len(cut) == layout.accumulate
    assert all(len(slot) == world_size for slot in cut)
    parts = [part for slot in cut for part in slot]
    assert sorted(i for part in parts for i in part) == [*range(len(lengths))]
    assert max(computed(lengths, part, padded) for part in parts) <= budget


@given(LENGTHS, st.integers(1, 3), st.booleans(), st.integers(1, 8))
def test_a_count_is_kept_and_no_row_lost(lengths: np.ndarray, world_size: int, padded: bool, size: int) -> None:
    step = whole_step(lengths)
    layout = Layout(0, size, 0, world_size, padded=padded).whole(step, lengths)
    parts = [part for slot in layout.cut(step, lengths) for part in slot]
    assert len(parts) == layout.micro_batches
    assert sorted(i for part in parts for i in part) == [*range(len(lengths))]
    assert max(map(len, parts)) <= size


@pytest.mark.parametrize("options", [{"micro_batch_size": 4}, {"micro_batch_size": None, "max_tokens": 400}])
@pytest.mark.parametrize("padded", [True, False])
def test_ranks_have_alike_work(options: dict, padded: bool) -> None:
    data = build_unequal_rows(960)
    layout = Layout(32, accumulate=4, world_size=2, padded=padded, **options)
    steps = Plan(data, Batching(32)).steps(0)
    if layout.max_tokens is not None:
        layout = layout.holding(steps, data.lengths)
    work = np.array(
        [
            [
                sum(computed(data.lengths, slot[rank], padded) for slot in layout.cut(step, data.lengths))
                for rank in (0, 1)
            ]
            for step in steps
        ]
    )
    slower = work.max(axis=1).sum() / (work.sum() / 2)
    assert slower < (1.2 if padded else 1.06)  # what the slower rank does, against an even split


def test_packed_sequences_stay_together_when_a_step_is_cut() -> None:
    data = build_unequal_rows(200)
    steps = Plan(data, Batching(8, packing_length=100)).steps(0)
    layout = Layout(8, 2, 2, 2)
    for step in steps:
        parts = [part for slot in layout.cut(step, data.lengths) for part in slot]
        assert sorted(i for part in parts for i in part) == sorted(step.samples.tolist())
        sequence_of = dict(zip(step.samples.tolist(), step.sequences.tolist(), strict=True))
        for sequence in set(step.sequences.tolist()):
            assert sum(any(sequence_of[i] == sequence for i in part) for part in parts) == 1
        assert max(computed(data.lengths, part, padded=False) for part in parts) <= 200


def test_numbers_that_do_not_multiply_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size must be divisible by the number of devices, got 10 over 4"):
        Layout.of(10, 4, None, None)
    with pytest.raises(UserError, match=r"got 16 against 2 x 3 x 4"):
        Layout.of(16, 2, 4, 3)
