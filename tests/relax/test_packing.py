"""Bin packing against a literal best-fit-decreasing, and how full bins are on lengths like those of chat data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relax.data.batching.packing import balanced, best_fit_decreasing
from relax.errors import UserError


def literal_best_fit(lengths: np.ndarray, capacity: int) -> list[int]:
    """Free space of each bin: one row at a time, into the fullest bin that has room."""
    spaces: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [b for b, space in enumerate(spaces) if space >= length]
        if not fitting:
            spaces.append(capacity)
            fitting = [len(spaces) - 1]
        spaces[min(fitting, key=lambda b: spaces[b])] -= length
    return sorted(spaces)


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_bins_are_those_of_the_textbook(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case[0], np.array(case[1], dtype=np.int64)
    bins = best_fit_decreasing(lengths, capacity)
    filled = np.bincount(bins, weights=lengths).astype(int)
    assert sorted((capacity - filled).tolist()) == literal_best_fit(lengths, capacity)


@pytest.mark.parametrize("capacity", [1024, 2048, 8192])
def test_lengths_like_chat_data_fill_bins_to_98_percent(capacity: int) -> None:
    lengths = np.random.default_rng(0).lognormal(5.3, 0.9, 20_000).astype(np.int64).clip(8, capacity)
    bins = best_fit_decreasing(lengths, capacity)
    assert lengths.sum() / ((bins.max() + 1) * capacity) > 0.98


def test_rows_of_one_length_are_taken_in_the_order_given() -> None:
    assert best_fit_decreasing(np.array([3, 3, 3, 3]), 6).tolist() == [0, 0, 1, 1]


def test_a_row_longer_than_a_bin_is_named() -> None:
    with pytest.raises(UserError, match=r"row 2 has 9 tokens, more than the 8"):
        best_fit_decreasing(np.array([3, 9]), 8)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 12))
def test_balanced_parts_lose_nothing_and_differ_by_less_than_the_longest(lengths: list[int], parts: int) -> None:
    spread = balanced(np.array(lengths), parts)
    assert sorted(row for part in spread for row in part) == [*range(len(lengths))]
    sums = [sum(lengths[row] for row in part) for part in spread]
    assert max(sums) <= sum(lengths) / parts + max(lengths)
