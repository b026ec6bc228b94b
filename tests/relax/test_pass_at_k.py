"""pass@k is what counting subsets gives."""

import math
from itertools import combinations

import pytest

from relax.errors import UserError
from relax.evaluation import pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_it_is_the_share_of_subsets_that_hold_a_right_answer(n: int) -> None:
    for c in range(n + 1):
        answers = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = [any(chosen) for chosen in combinations(answers, k)]
            assert pass_at_k(n, c, k) == sum(subsets) / len(subsets)


def test_it_is_unbiased() -> None:
    """The mean over what a coin of known bias gives is the chance that one of k tosses succeeds."""
    n, p = 12, 0.3
    for k in (1, 3, 12):
        chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
        assert mean == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


def test_small_shares_of_many_samples_keep_their_digits() -> None:
    assert pass_at_k(100_000, 1, 1) == 1e-5
    assert pass_at_k(10_000, 10, 100) == pytest.approx(1 - math.prod(1 - 100 / (10_000 - i) for i in range(10)))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_impossible_numbers(n: int, c: int, k: int) -> None:
    with pytest.raises(UserError, match=r"k of pass@k|right answers"):
        pass_at_k(n, c, k)
