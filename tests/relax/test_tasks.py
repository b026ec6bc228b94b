"""Tasks to learn from rewards: which there are, their prompts on both sides, and what an answer scores."""

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from relax.errors import UserError
from relax.rewards import Sample, build_rewards
from relax.tasks import TASKS, find_task
from relax.tasks.reasoning_gym import NUM_HELD_OUT, ReasoningGymTask
from relax.tasks.sorting import is_held_out, solution

SORTING = TASKS["sorting"]


def score(rewards: Any, row: dict[str, Any], completion: str, truncated: bool = False) -> float:
    with build_rewards(rewards, workers=0) as functions:
        return functions.score([Sample(row["prompt"], completion, row, truncated=truncated)]).total[0]


def test_sorting_prompts_are_of_the_training_side_and_a_function_of_the_seed() -> None:
    rows = SORTING.prompt_rows()
    assert len(rows) == 20_000
    assert not any(is_held_out(row["prompt"]) for row in rows)
    assert all(row["answer"] == solution(row["prompt"]) for row in rows)
    assert SORTING.prompt_rows(50, seed=3) == SORTING.prompt_rows(200, seed=3)[:50]
    assert SORTING.prompt_rows(50, seed=3) != SORTING.prompt_rows(50, seed=4)
    assert {len(row["prompt"]) for row in rows} == {5, 6, 7, 8, 9}


def test_a_sorted_answer_scores_only_if_it_ends_by_itself() -> None:
    row = SORTING.eval_rows(1)[0]
    assert score(SORTING.rewards, row, row["answer"]) == 1.0
    assert score(SORTING.rewards, row, row["answer"], truncated=True) == 0.0
    assert score(SORTING.rewards, row, row["answer"][::-1]) == 0.0
    assert [function.name for function in build_rewards(SORTING.rewards).functions] == ["sorting"]


def test_a_completion_has_room_for_the_longest_answer_and_its_end() -> None:
    longest = max(len(row["answer"]) for row in SORTING.prompt_rows())
    assert SORTING.grpo_settings["max_new_tokens"] == longest + 1
    assert SORTING.rl_settings["max_new_tokens"] == longest + 1


def test_tasks_by_name() -> None:
    assert find_task("sorting") is SORTING
    task = find_task("reasoning_gym:chain_sum,max_terms=3,size=50")
    assert task == ReasoningGymTask("chain_sum", {"max_terms": 3}, 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sortin", "--task must be one of reasoning_gym:NAME, sorting, got sortin; did you mean sorting?"),
        ("sorting,digits=3", "--task=sorting takes no settings, got digits"),
        ("reasoning_gym:chain_sum,size=many", "--task: size must be a number of prompts above 0, got 'many'"),
        ("reasoning_gym:chain_sum,size=0", "--task: size must be a number of prompts above 0, got 0"),
        ("reasoning_gym:chain_sum,3", "--task is a name and then key=value"),
    ],
)
def test_a_task_that_does_not_exist(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        find_task(text)


def test_a_reasoning_task_holds_prompts_out_and_scores_answers() -> None:
    pytest.importorskip("reasoning_gym")
    task = find_task("reasoning_gym:chain_sum,max_terms=2,max_digits=1,min_digits=1,size=300")
    held_out, learned = task.eval_rows(), task.prompt_rows()
    assert len(held_out) == NUM_HELD_OUT
    assert 0 < len(learned) < 300  # of few different sums, those held out are taken away
    assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in learned}
    assert score(task.rewards, learned[0], f"<answer>{learned[0]['answer']}</answer>") == 1.0
    assert score(task.rewards, learned[0], "no idea") == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reasoning_gym:chain_sums", "no task 'chain_sums'; did you mean chain_sum"),
        ("reasoning_gym:chain_sum,max_term=3", "chain_sum does not take"),
        ("reasoning_gym:chain_sum,min_terms=1,max_terms=1,min_digits=1,max_digits=1", "few different prompts"),
    ],
)
def test_a_reasoning_task_that_cannot_be_made(text: str, message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=message):
        find_task(text).prompt_rows()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs reasoning-gym.*, which is not installed"):
        find_task("reasoning_gym:chain_sum").prompt_rows()


def test_naming_the_tasks_loads_no_rewards() -> None:
    code = "import sys, relax.tasks; print([m for m in ('transformers', 'relax.rewards') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
