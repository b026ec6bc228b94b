"""The procedural tasks of the package reasoning-gym, with rows and scoring; they need a model of the user's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from relax.cli.yaml12 import plain_value
from relax.errors import UserError

PREFIX = "reasoning_gym:"
NUM_PROMPTS, NUM_HELD_OUT = 2_000, 200


@dataclass(frozen=True)
class ReasoningGymTask:
    """A ``PromptTask``.

    Args:
        name: of the task in reasoning-gym, such as ``chain_sum``.
        config: settings that the task itself takes, such as ``max_terms``.
        num_prompts: to learn from; those that are held out are taken away from them.
    """

    name: str
    config: Mapping[str, Any]
    num_prompts: int = NUM_PROMPTS

    @classmethod
    def of(cls, name: str, settings: Mapping[str, str]) -> Self:
        """From the text of ``--task``; ``size`` is ``num_prompts``, the others are the task's.

        Raises:
            UserError: ``size`` is no whole number above 0.
        """
        config = {key: plain_value(value) for key, value in settings.items()}
        size = config.pop("size", NUM_PROMPTS)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"--task: size must be a number of prompts above 0, got {size!r}")
        return cls(name, config, size)

    @property
    def rewards(self) -> str:
        """The task's own score, where full: 1.0, else 0.0."""
        return "reasoning_gym"

    def prompt_rows(self) -> list[dict[str, Any]]:
        """Rows that have no held-out prompt.

        Raises:
            UserError: the package is missing, has no such task or setting, or the task has too few prompts.
        """
        held_out = {row["prompt"] for row in self.eval_rows()}
        rows = [row for row in self._rows(self.num_prompts, seed=0) if row["prompt"] not in held_out]
        if not rows:
            raise UserError(
                f"--task={PREFIX}{self.name} has so few different prompts that none is left beside {len(held_out)} "
                "held-out ones; make it larger with a setting of the task"
            )
        return rows

    def eval_rows(self) -> list[dict[str, Any]]:
        """Held-out rows.

        Raises:
            UserError: the package is missing, or has no such task or setting.
        """
        return self._rows(NUM_HELD_OUT, seed=1)

    def _rows(self, n: int, seed: int) -> list[dict[str, Any]]:
        from relax.rewards.reasoning_tasks import task_rows

        return task_rows(self.name, n, seed, **self.config)
