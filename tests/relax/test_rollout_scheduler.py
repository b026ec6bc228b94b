"""Who decodes when, and how much memory that takes."""

import random

import pytest
import torch
from tiny_models import refused

from relax.rollout.memory import budget_tokens, plan_slots
from relax.rollout.prompts import split_prompts
from relax.rollout.rows import LiveRows, Row
from relax.rollout.sampling import Sampling
from relax.rollout.scheduler import Group, Scheduler, group_rows

CPU = torch.device("cpu")


def queue_of(*sizes: int) -> list[Group]:
    return [Group([place], [Row([place], key=0) for _ in range(size)]) for place, size in enumerate(sizes)]


def sizes(groups: list[Group]) -> list[int]:
    return [len(group.rows) for group in groups]


def test_rows_of_equal_prompts_are_one_group_and_long_prompts_start_first() -> None:
    rows = [Row(prompt, key) for key, prompt in enumerate([[1], [1, 2, 3], (1,), [4, 5]])]
    assert [[row.key for row in group.rows] for group in group_rows(rows)] == [[1], [3], [0, 2]]


def test_groups_start_whole_and_when_a_quarter_is_free() -> None:
    scheduler = Scheduler(queue_of(4, 4, 4, 1), capacity=8, mixes_prompts=True)
    assert sizes(scheduler.admit(0)) == [4, 4]
    assert scheduler.admit(8) == []
    assert scheduler.admit(7) == [], "one place in eight is no quarter"
    assert scheduler.admit(6) == [], "two places are no group of four"
    assert sizes(scheduler.admit(3)) == [4, 1]
    assert len(scheduler) == 0


def test_a_group_larger_than_all_places_is_cut() -> None:
    scheduler = Scheduler(queue_of(7), capacity=3, mixes_prompts=True)
    assert [sizes(scheduler.admit(0)) for _ in range(3)] == [[3], [3], [1]]


def test_where_prompts_do_not_mix_one_group_lives_at_a_time() -> None:
    scheduler = Scheduler(queue_of(2, 2), capacity=8, mixes_prompts=False)
    assert sizes(scheduler.admit(0)) == [2]
    assert scheduler.admit(1) == []
    assert sizes(scheduler.admit(0)) == [2]


def test_survivors_keep_their_places_and_the_last_fill_the_holes() -> None:
    live = LiveRows(Sampling(max_new_tokens=9, stop_ids=(1,)), vocabulary=4, device=CPU)
    live.add([Row([0] * (place + 1), key=place) for place in range(6)])
    live.append(torch.tensor([2, 1, 2, 1, 2, 2]), torch.zeros(6))
    assert live.collect() == [0, 5, 2, 4]
    assert [row.key for row in live.rows] == live.keys.tolist() == [0, 5, 2, 4]
    assert live.positions.tolist() == [1, 6, 3, 5]
    assert live.steps_left == 8


def test_tokens_after_the_end_are_dropped() -> None:
    """Rows are looked at every few steps only; what they wrote meanwhile does not count."""
    live = LiveRows(Sampling(max_new_tokens=9, stop_ids=(1,)), vocabulary=4, device=CPU)
    row = Row([0], key=0)
    live.add([row])
    for token in (3, 1, 2):
        live.append(torch.tensor([token]), torch.tensor([-0.5]))
    assert live.collect() == []
    assert (row.ids, row.logprobs, row.finish_reason) == ([3, 1], [-0.5, -0.5], "stop")


def test_prompts_are_cut_into_runs_within_the_budget() -> None:
    random.seed(0)
    for _ in range(200):
        lengths = [random.randint(1, 40) for _ in range(random.randint(1, 12))]
        runs = split_prompts(lengths, 60)
        assert [place for run in runs for place in run] == [*range(len(lengths))]
        for run in runs:
            assert len(run) == 1 or len(run) * max(lengths[run.start : run.stop]) <= 60


def test_slots_fit_the_budget() -> None:
    assert plan_slots(1000, 8, longest_prompt=60, longest_completion=40) == (8, 100)
    rows, columns = plan_slots(999, 10, longest_prompt=60, longest_completion=40)
    assert rows * columns <= 999
    assert columns > 100, "rows that join late need room"
    assert plan_slots(100, 10, longest_prompt=60, longest_completion=40) == (1, 100)
    with refused("99 tokens", "(60)", "(40)", "100"):
        plan_slots(99, 10, longest_prompt=60, longest_completion=40)


@pytest.mark.parametrize(
    ("memory", "tokens"), [(7, 7), ("1KB", 10), ("1.5 KiB", 15), ("2MB", 20_000), (None, 2**30 // 100)]
)
def test_memory_is_tokens_or_a_size(memory: int | str | None, tokens: int) -> None:
    assert budget_tokens(memory, token_bytes=100, device=CPU) == tokens


def test_memory_that_is_neither_is_refused() -> None:
    for memory in (0, "4", "GB", "4TB"):
        with refused("--rollout_memory", str(memory)):
            budget_tokens(memory, token_bytes=100, device=CPU)
