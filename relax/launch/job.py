"""The end that all scripts share: train, or rehearse; say how good the model was and is, and where the results lie."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from relax import report
from relax.protocols import StopsOnSignals


class Job(Protocol):
    """What is needed of a trainer."""

    own_callbacks: list[L.Callback]
    output_dir: Path | None
    resume: str | None

    def train(self) -> Any:
        """Run it."""

    def dry_run(self) -> Any:
        """Look whether it fits; what it gives is told as text."""


def carry_out(
    trainer: Job, command: str, *, logger: str, measure: Callable[[str], None] | None, advice: Sequence[str]
) -> None:
    """Run a job to its end, or, where it has no folder, a dry run of it.

    Leaves the process with the code of the signal, if one stopped the run.

    Args:
        trainer: of the job.
        command: that the user started.
        logger: where its figures go, by name.
        measure: called with ``before`` and ``after``: says how good the model is.
        advice: flags of commands to try next.
    """
    folder = trainer.output_dir
    if folder is None:
        report.say(str(trainer.dry_run()))
        return
    if measure is not None and trainer.resume is None:
        measure("before")
    trainer.train()
    for guard in trainer.own_callbacks:
        if isinstance(guard, StopsOnSignals):
            report.leave_if_stopped(guard.exit_code, command, folder)
    if measure is not None:
        measure("after")
    report.say(*report.describe_results(folder, logger), *report.try_next(command, *advice))


def judged(module: L.LightningModule, num_pairs: int | None) -> Callable[[str], None] | None:
    """Says, ``after`` training, how many held-out pairs a reward model judges right; ``before``, nobody has asked it.

    Args:
        module: what is trained.
        num_pairs: that are held out; None: none.
    """
    if num_pairs is None:
        return None

    def measure(when: str) -> None:
        if when == "after":
            right = float(module.trainer.callback_metrics["val/accuracy"])
            report.say(f"Accuracy {when} training: the better answer of {right:.1%} of {num_pairs} held-out pairs")

    return measure
