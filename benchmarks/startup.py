"""Seconds from the start of a process to its first optimizer step, and to the end of ``--help``.

    python benchmarks/startup.py --quick

A small model, its tokenizer and 1,000 rows of prompt and completion lie on disk. ReLax runs ``run_sft.py``; TRL runs
the script of its own documentation, its tokenization cached from an earlier run. Every round starts each program once.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from side_by_side import PACKAGES, benchmark_arguments, print_machine, print_table, write_json

HERE = Path(__file__).parent
RUN_SFT = [sys.executable, str(HERE.parent / "run_sft.py")]
ROWS = 1000
ROUNDS = 7
QUICK_ROUNDS = 2


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender == "TRL":
        first_step_of_trl(options.folder)
    compare(options)


def first_step_of_trl(folder: Path) -> None:
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class FirstStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            os._exit(0)

    SFTTrainer(
        model=str(folder / "model"),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=32,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train"),
        callbacks=[FirstStep()],
    ).train()


def programs(folder: Path) -> dict[str, list[str]]:
    """What is started, by the name in the table."""
    data = [f"--model={folder / 'model'}", f"--dataset={folder / 'rows.jsonl'}", "--batch_size=32"]
    training = [*RUN_SFT, *data, f"--output_dir={folder / 'run'}", "--overwrite", "--callbacks=first_step.FirstStep"]
    started = {
        "python run_sft.py --help": [*RUN_SFT, "--help"],
        "run_sft.py, first step, --logger=none": [*training, "--logger=none"],
        "run_sft.py, first step, MLflow as by default": training,
        "import lightning": [sys.executable, "-c", "import lightning, os; os._exit(0)"],
    }
    if find_spec("trl"):
        trl = [sys.executable, __file__, "--contender=TRL", f"--folder={folder}"]
        started["TRL's SFTTrainer, first step"] = trl
        started["from trl import SFTTrainer"] = [
            sys.executable,
            "-c",
            "import os; from trl import SFTTrainer; os._exit(0)",
        ]
        started["trl sft --help"] = [sys.executable, "-m", "trl.cli.main", "sft", "--help"]
    return started


def compare(options: argparse.Namespace) -> None:
    packages = (*PACKAGES, "mlflow", *(["trl"] if find_spec("trl") else []))
    machine = print_machine(options.threads, packages)
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        started = programs(folder)
        measured: dict[str, list[dict[str, float]]] = {program: [] for program in started}
        for number in range(1 + (QUICK_ROUNDS if options.quick else ROUNDS)):
            for program, command in started.items():
                figures = run(command, folder, options.threads)
                if number:  # the first round fills the caches of the disk and of the data sets
                    measured[program].append(figures)
    rows = [
        [program, *(f"{median(turn[clock] for turn in turns):.2f}" for clock in ("seconds", "cpu_seconds"))]
        for program, turns in measured.items()
    ]
    print_table(["", "seconds", "CPU seconds"], rows)
    write_json(options.json, machine, measured)


def prepare(folder: Path) -> None:
    from relax.tasks.sorting import Sorting

    task = Sorting()
    task.build_model().save_pretrained(folder / "model")
    task.build_tokenizer().save_pretrained(folder / "model")
    lines = [json.dumps(row) for row in task.train_rows(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def run(command: list[str], folder: Path, threads: int) -> dict[str, float]:
    """Wall and CPU seconds of a program.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    log = folder / "output.txt"
    before, start = os.times(), time.perf_counter()
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=HERE, env=os.environ | settings, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{log.read_text()}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": used}


if __name__ == "__main__":
    main()
