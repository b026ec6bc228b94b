"""The built-in tasks: what the scripts train on when the user names no data. One task, one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from relax import checks
from relax.cli.inline import read_inline
from relax.errors import UserError
from relax.tasks.reasoning_gym import PREFIX, ReasoningGymTask
from relax.tasks.sorting import Sorting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from relax.rewards.specs import Entry

__all__ = ["TASKS", "PromptTask", "Task", "find_task"]


class PromptTask(Protocol):
    """Prompts and what answers to them score: enough to learn from rewards; functions of their arguments alone."""

    @property
    def rewards(self) -> "Entry":
        """What ``relax.rewards.build_rewards`` makes the task's own reward of: between 0.0 and 1.0."""

    def prompt_rows(self) -> Sequence[dict[str, Any]]:
        """Rows of ``prompt``, ``answer`` and what the reward asks for, to learn from."""

    def eval_rows(self) -> Sequence[dict[str, Any]]:
        """The same, of held-out prompts."""


class Task(PromptTask, Protocol):
    """With demonstrations, a model and a tokenizer of its own, too."""

    @property
    def sft_settings(self) -> dict[str, Any]:
        """Flags of ``run_sft`` with which the built-in model learns the task."""

    @property
    def grpo_settings(self) -> dict[str, Any]:
        """Flags of ``run_grpo`` with which the policy in ``policy_folder`` gets better at it."""

    @property
    def rl_settings(self) -> dict[str, Any]:
        """The same of ``run_rl``."""

    @property
    def reward_settings(self) -> dict[str, Any]:
        """Flags of ``run_reward`` with which a model that starts from that policy learns to judge its answers."""

    @property
    def policy_folder(self) -> Path:
        """The model that ``run_sft`` makes of this task, which reinforcement learning starts from."""

    def train_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """``n`` rows of ``prompt`` and ``completion``, without end of text."""

    def prompt_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """``n`` rows of ``prompt`` and ``answer``, from the side of the prompts of ``train_rows``."""

    def eval_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """``n`` rows of ``prompt`` and ``answer``, whose prompts are in no training rows of any seed."""

    def preference_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """``n`` rows of ``prompt``, ``chosen`` and ``rejected``, from the side of the prompts of ``train_rows``."""

    def held_out_preference_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """The same from the side of ``eval_rows``."""

    def grade(self, prompt: str, completion: str) -> float:
        """The verifiable reward of a completion's text, special tokens cut off: between 0.0 and 1.0."""

    def build_model(self, seed: int = ...) -> "PreTrainedModel":
        """A fresh model, small enough for a CPU."""

    def build_tokenizer(self) -> "PreTrainedTokenizerFast":
        """Its tokenizer, with a pad and an end-of-text token."""


TASKS: dict[str, Task] = {"sorting": Sorting()}


def find_task(text: str) -> PromptTask:
    """The task that ``--task`` names: one of ``TASKS``, or ``reasoning_gym:NAME``, perhaps with settings behind it.

    Raises:
        UserError: there is no such task.
    """
    name, settings = read_inline("task", text)
    if name.startswith(PREFIX):
        return ReasoningGymTask.of(name.removeprefix(PREFIX), settings)
    checks.one_of([*TASKS, f"{PREFIX}NAME"], task=name)
    if settings:
        raise UserError(f"--task={name} takes no settings, got {', '.join(settings)}; drop them")
    return TASKS[name]
