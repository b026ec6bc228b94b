"""What a run tells the person who started it, on rank 0: what is trained on what, and where the results lie."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import nn

from relax import run_folder
from relax.data.audit import LOG_WIDTH, TEXT_FILE, Audit, audit_lines, save_audit
from relax.data.prompts import PromptDataset
from relax.data.tokens.tokenized import TokenizedDataset
from relax.models import count_parameters
from relax.ranks import is_main_process
from relax.tasks import Task
from relax.tasks.grading import accuracy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES_FILE = "samples.jsonl"


def say(*lines: str) -> None:
    """Print on rank 0; a character that the output cannot encode becomes a question mark."""
    if is_main_process():
        encoding = sys.stdout.encoding or "utf-8"
        print(*(line.encode(encoding, "replace").decode(encoding) for line in lines), sep="\n", flush=True)


def describe_model(model: nn.Module, name: str) -> str:
    """``Model sorting: 102,464 parameters, all trained``."""
    total, trained = count_parameters(model)
    share = "all trained" if trained == total else f"{trained:,} of them trained ({trained / total:.2%})"
    return f"Model {name}: {total:,} parameters, {share}"


def describe_data(name: str, data: TokenizedDataset) -> str:
    """Rows, tokens, trained share, and what was cut or dropped."""
    report = data.report
    line = (
        f"{name}: {report.rows_kept:,} rows, {report.tokens:,} tokens, "
        f"{report.trained_tokens / report.tokens:.0%} of them trained, longest row {int(data.lengths.max()):,}"
    )
    if report.truncated:
        line += f"; {report.truncated:,} rows cut to --max_length"
    dropped = ", ".join(f"{count:,} rows dropped ({reason})" for reason, count in report.dropped.items())
    return f"{line}; {dropped}" if dropped else line


def describe_prompts(train: PromptDataset | None, held_out: PromptDataset | None) -> list[str]:
    """How many, how long, and how many were too long."""
    lines = [] if train is None else [f"Training data: {train.describe()}"]
    return lines if held_out is None else [*lines, f"Held-out data: {held_out.describe()}"]


def say_audit(audit: Audit, folder: Path | None) -> None:
    """Print the audit, in colour on a terminal, and keep it in the run's folder; on rank 0.

    Raises:
        UserError: the folder cannot be written.
    """
    if not is_main_process():
        return
    terminal = Console()  # it knows NO_COLOR, dumb terminals and pipes
    color = terminal.is_terminal and terminal.color_system is not None and not terminal.no_color
    say(*audit_lines(audit, color=color, width=min(terminal.width, LOG_WIDTH) if terminal.is_terminal else LOG_WIDTH))
    if folder is not None:
        save_audit(audit, folder)


def say_accuracy(when: str, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", task: Task) -> None:
    """Ask the task's held-out prompts and print the share of right answers; on rank 0."""
    if not is_main_process():
        return
    rows = task.eval_rows()
    right = accuracy(model, tokenizer, rows, task.grade)
    say(f"Accuracy {when} training: {right:.1%} of {len(rows)} held-out prompts answered right (greedy)")


def leave_if_stopped(exit_code: int | None, script: str, folder: Path) -> None:
    """After a run that a signal stopped (``exit_code`` is not None): say how it goes on, and end the process."""
    if exit_code is not None:
        say(f"Stopped; continue with: {script} --config={folder}/config.yaml --resume=auto")
        sys.exit(exit_code)


def describe_results(folder: Path, logger: str) -> list[str]:
    """Where everything lies."""
    lines = [f"Everything lies in {folder}/", "  metrics.jsonl   figures of every step"]
    if (folder / TEXT_FILE).exists():
        lines += [f"  {TEXT_FILE}  what the model was shown"]
    if (folder / SAMPLES_FILE).exists():
        lines += [f"  {SAMPLES_FILE}   what the policy wrote"]
    lines += ["  checkpoints/    continue with --resume=auto"]
    if run_folder.export_folder(folder).exists():
        lines += ["  model/          for transformers, vLLM and others"]
    if logger == "mlflow":
        store = f"mlflow ui --backend-store-uri sqlite:///{folder.parent / 'mlflow.db'}"
        # Not its address: that may hold a password.
        lines += ["Plots: at your MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else f"Plots: {store}"]
    return lines


def next_sft_flags(folder: Path, flags: Mapping[str, Any]) -> list[str]:
    """What to try after a supervised run in ``folder`` with ``flags``."""
    exported = run_folder.export_folder(folder)
    model = "" if flags["model"] is None else f"--model={flags['model']} "
    adapted = flags["lora_r"] or flags["adapter"]
    trained = f"{model}--adapter={exported}" if adapted else f"--model={exported} --lora_r=8 --learning_rate=1e-3"
    data = "--task=sorting" if flags["dataset"] is None else "--dataset=MORE.jsonl"
    return [
        f"{trained} {data}",
        "--model=Qwen/Qwen2.5-0.5B --dataset=YOURS.jsonl --lora_r=16 --learning_rate=2e-4",
    ]


def next_reward_commands(folder: Path, flags: Mapping[str, Any]) -> list[str]:
    """The same after a reward model was trained: first of all to learn from it."""
    exported = run_folder.export_folder(folder)
    policy = "" if flags["model"] is None else f"--model={flags['model']} --dataset=PROMPTS.jsonl "
    adapted = "--lora_r=16 " if flags["lora_r"] or flags["adapter"] else ""
    return [
        f"python run_rl.py {policy}{adapted}--reward_model={exported}",
        "--model=Qwen/Qwen2.5-0.5B-Instruct --dataset=YOURS.jsonl --val_split=0.05 --lora_r=16 --learning_rate=1e-4",
    ]


def try_next(script: str, *flags: str) -> list[str]:
    """Commands to try, and where all flags are told; among the flags of ``script`` whole commands may stand."""
    commands = [words if words.startswith("python ") else f"{script} {words}" for words in (*flags, "--help")]
    return ["Try next:", *(f"  {command}" for command in commands)]
