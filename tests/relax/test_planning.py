"""Which rows make a step: nothing lost, nothing twice, a mixture's shares, a function of the seed and the epoch."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_unequal_rows

from relax.data.batching.planning import Batching, Plan, apportion
from relax.data.tokens.tokenized import TokenizedDataset
from relax.errors import UserError


def samples_of(plan: Plan, epoch: int) -> list[int]:
    return [int(i) for step in plan.steps(epoch) for i in step.samples]


def mixture(sizes: list[int], shares: tuple[float, ...]) -> TokenizedDataset:
    parts = np.repeat(np.arange(len(sizes)), sizes).astype(np.int16)
    names = tuple(f"part{i}" for i in range(len(sizes)))
    return replace(build_unequal_rows(sum(sizes)), parts=parts, part_names=names, shares=shares)


@pytest.mark.parametrize("options", [{}, {"group_by_length": True}, {"packing_length": 128}])
def test_an_epoch_holds_every_row_once_in_another_order_each_time(options: dict) -> None:
    plan = Plan(build_unequal_rows(203), Batching(8, seed=1, **options))
    first, second = samples_of(plan, 0), samples_of(plan, 1)
    assert sorted(first) == sorted(second) == [*range(203)]
    assert first != second
    assert first == samples_of(plan, 0)
    assert len(plan.steps(0)) == len(plan.steps(1)) == plan.num_steps


def test_group_by_length_groups() -> None:
    data = build_unequal_rows(200)

    def spread(group: bool) -> float:
        steps = Plan(data, Batching(8, group_by_length=group)).steps(0)
        return float(sum(np.ptp(data.lengths[step.samples]) for step in steps))

    assert spread(True) < spread(False) / 4


def test_packed_sequences_keep_within_their_length_and_are_what_the_batch_size_counts() -> None:
    data = build_unequal_rows(300)
    steps = Plan(data, Batching(4, packing_length=100)).steps(0)
    for step in steps:
        filled = np.bincount(step.sequences, weights=data.lengths[step.samples])
        assert filled.max() <= 100
    assert all(step.sequences.max() == 3 for step in steps[:-1])
    assert len(steps) == -(-sum(step.sequences.max() + 1 for step in steps) // 4)


def test_a_row_longer_than_the_packing_length_is_refused() -> None:
    with pytest.raises(UserError, match=r"--packing_length=50 must hold the longest row, which has 90 tokens"):
        Plan(build_unequal_rows(10), Batching(4, packing_length=50))


def test_a_mixture_gives_each_part_its_share_in_passes_without_repetition() -> None:
    data = mixture([60, 40], (0.3, 0.7))  # 30 of 60 rows an epoch, and 70 of 40
    plan = Plan(data, Batching(8, seed=3))
    epochs = [samples_of(plan, epoch) for epoch in range(4)]
    for rows in epochs:
        assert Counter(int(part) for part in data.parts[rows]) == {0: 30, 1: 70}
    few = Counter(i for rows in epochs[:2] for i in rows if i < 60)
    assert set(few.values()) == {1}  # two epochs are one pass
    assert len(few) == 60
    many = Counter(i for rows in epochs for i in rows if i >= 60)
    assert set(many.values()) == {7}  # 280 of 40 rows are seven passes
    assert set(Counter(i for i in epochs[0] if i >= 60).values()) == {1, 2}


def test_a_packed_mixture_has_as_many_steps_in_every_epoch() -> None:
    plan = Plan(mixture([120, 40], (0.3, 0.7)), Batching(2, packing_length=90))
    assert {len(plan.steps(epoch)) for epoch in range(6)} == {plan.num_steps}
    assert all(len(step.samples) for epoch in range(6) for step in plan.steps(epoch))


def test_a_part_without_rows_or_with_too_small_a_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"part1: 3 rows to train on and a share of 0.001, which is 0 rows"):
        Plan(mixture([97, 3], (0.999, 0.001)), Batching(4))


def test_apportionment_sums_and_is_near() -> None:
    assert apportion(10, (1 / 3, 1 / 3, 1 / 3)) == [4, 3, 3]
    assert apportion(7, (0.5, 0.5)) == [4, 3]
