"""The tasks of the package reasoning-gym: their rows, and the score that each of them gives to an answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relax.checks import nearest
from relax.errors import UserError
from relax.rewards.answers import final_answer
from relax.rewards.optional_packages import load, require
from relax.seeding import mix

_PACKAGE = ("reasoning_gym", "reasoning-gym", "reasoning_gym")
_FULL_SCORE = 1.0 - 1e-6


def task_rows(task: str, n: int, seed: int = 0, **config: Any) -> list[dict[str, Any]]:
    """``n`` rows of ``prompt``, ``answer`` and what `ReasoningGym` needs; a function of the arguments alone.

    Rows of two seeds are drawn apart, but a small task has few different rows. Some tasks take long: 10,000 rows of
    ``countdown`` minutes.

    Args:
        task: A name of reasoning-gym, such as ``chain_sum``.
        n: How many.
        seed: Of the rows.
        config: Settings of the task, such as ``max_terms=3``.

    Raises:
        UserError: The package is not installed, or has no such task or setting.
    """
    # reasoning-gym draws row i from seed + i, so that neighbouring seeds would share nearly all rows.
    apart = mix(seed, "reasoning_gym", task) % 2**32
    entries = _create(task, {"seed": apart, "size": n} | config)
    return [_row(task, entries[index]) for index in range(n)]


@dataclass(frozen=True)
class ReasoningGym:
    """The task's own score of the completion's final answer, on rows that `task_rows` made.

    The final answer is what is marked as such, else the whole completion, without white space around it. Many tasks
    give part of the score to any text that contains the answer, however long; so by default only the full score counts.

    Args:
        partial: Take the task's score as it is instead of 1.0 for the full one and 0.0 for less.

    Raises:
        UserError: reasoning-gym is not installed.
    """

    partial: bool = False
    _tasks: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(*_PACKAGE)

    def __call__(self, completion: str, question: str, answer: str, metadata: Any, reasoning_gym_task: str) -> float:
        """The score of one completion."""
        task = self._tasks.get(reasoning_gym_task) or _create(reasoning_gym_task, {"seed": 0, "size": 1})
        self._tasks[reasoning_gym_task] = task
        marked = final_answer(completion)
        given = completion.strip() if marked is None else marked
        entry = {"question": question, "answer": answer, "metadata": metadata}
        score = float(task.score_answer(given, entry))
        return score if self.partial else float(score >= _FULL_SCORE)


def _create(task: str, config: Mapping[str, Any]) -> Any:
    require(*_PACKAGE)
    known = load("reasoning_gym.factory").DATASETS
    if task not in known:
        raise UserError(f"reasoning-gym has no task {task!r}{nearest(task, known)}; it has {len(known)}")
    try:
        return load("reasoning_gym").create_dataset(task, **config)
    except (TypeError, AssertionError) as error:  # how it refuses settings
        raise UserError(f"reasoning-gym's task {task} does not take {dict(config)}: {error}") from None


def _row(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": entry["question"],
        "question": entry["question"],
        "answer": entry["answer"],
        "metadata": entry["metadata"],
        "reasoning_gym_task": task,
    }
