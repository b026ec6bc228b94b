"""Scores of lengths and repetition, against the published equations."""

import pytest

from relax.errors import UserError
from relax.rewards.lengths import Repetition, SoftOverlong, TargetLength


def dapo(length: int, longest: int, cache: int) -> float:
    """arXiv 2503.14476, equation 13, case by case."""
    if length <= longest - cache:
        return 0.0
    return ((longest - cache) - length) / cache if length <= longest else -1.0


@pytest.mark.parametrize("length", [0, 1, 79, 80, 81, 90, 100, 101, 500])
@pytest.mark.parametrize("cache", [20, 1, 100])
def test_soft_overlong_is_the_equation(length: int, cache: int) -> None:
    assert SoftOverlong(100, cache)("", range(length)) == pytest.approx(dapo(length, 100, cache), abs=1e-15)
    assert SoftOverlong(100)("", range(length)) == pytest.approx(dapo(length, 100, 20), abs=1e-15)


def test_target_length() -> None:
    score = TargetLength(10)
    assert [score("", range(n)) for n in (10, 5, 15, 0, 20, 1000)] == [0, -0.5, -0.5, -1, -1, -1]


def test_repetition_is_the_share_of_ngrams_that_came_before() -> None:
    assert Repetition(2)("", [1, 2, 3, 4]) == 0.0
    assert Repetition(2)("", [1, 2, 1, 2, 1]) == -0.5  # 12 21 12 21: two of four
    assert Repetition(4)("", [7] * 1000) == pytest.approx(-1, abs=2e-3)
    assert Repetition(4)("", [1, 2, 3]) == 0.0


def test_settings_out_of_range_are_refused() -> None:
    for build in (
        lambda: SoftOverlong(0),
        lambda: SoftOverlong(10, 11),
        lambda: TargetLength(0),
        lambda: Repetition(0),
    ):
        with pytest.raises(UserError, match="must"):
            build()
