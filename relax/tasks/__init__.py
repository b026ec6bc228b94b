"""The built-in tasks: what the scripts train on when the user names no data. One task, one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from relax.tasks.sorting import Sorting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["TASKS", "Task"]


class Task(Protocol):
    """Data, model, tokenizer and grading of a built-in task; every result is a function of its arguments alone."""

    @property
    def sft_settings(self) -> dict[str, Any]:
        """Flags of ``run_sft`` with which the built-in model learns the task."""

    @property
    def policy_folder(self) -> Path:
        """The model that ``run_sft`` makes of this task, which reinforcement learning starts from."""

    def train_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """``n`` rows of ``prompt`` and ``completion``, without end of text."""

    def eval_rows(self, n: int = ..., seed: int = ...) -> list[dict[str, str]]:
        """``n`` rows of ``prompt`` and ``answer``, whose prompts are in no ``train_rows`` of any seed."""

    def grade(self, prompt: str, completion: str) -> float:
        """The verifiable reward of a completion's text, special tokens cut off: between 0.0 and 1.0."""

    def build_model(self, seed: int = ...) -> "PreTrainedModel":
        """A fresh model, small enough for a CPU."""

    def build_tokenizer(self) -> "PreTrainedTokenizerFast":
        """Its tokenizer, with a pad and an end-of-text token."""


TASKS: dict[str, Task] = {"sorting": Sorting()}
