"""A run of SafeInterrupt as a script, for tests that send it signals: FOLDER DEVICES MOMENT [RANK SIGNAL]...

At MOMENT (step=N, validation, setup, or end) every given RANK gets its SIGNAL, from itself. Prints the exit code.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from tiny_run import Tiny, trainer

from callbacks import Checkpoint, MetricsFile, SafeInterrupt, StepSeed


class Sender(L.Callback):
    def __init__(self, moment: str, signals: dict[int, int]) -> None:
        self.moment, self.signals = moment, signals

    def send(self, trainer: L.Trainer, moment: str) -> None:
        if moment == self.moment and trainer.global_rank in self.signals:
            signum = self.signals.pop(trainer.global_rank)
            os.kill(os.getpid(), signum)
            if "again" in sys.argv:
                time.sleep(0.1)
                os.kill(os.getpid(), signum)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.send(trainer, "setup")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.send(trainer, f"step={trainer.global_step}")

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.send(trainer, "validation")

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.send(trainer, "end")


def main(folder: Path, devices: int, moment: str, signals: dict[int, int]) -> None:
    guard = SafeInterrupt(folder)
    sender = Sender(moment, signals)
    distributed = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    run = trainer(
        Checkpoint(folder, save_at_end=False),
        guard,  # first, to have the signals before the sender sends
        StepSeed(),
        MetricsFile(folder / "metrics.jsonl"),
        sender,
        max_epochs=3,
        accumulate_grad_batches=2,
        **distributed,
    )
    # Lightning runs checkpoint callbacks last, but a signal during setup needs them first here.
    run.callbacks.remove(sender)
    run.callbacks.append(sender)
    run.fit(Tiny(validates=moment == "validation"))
    print(f"rank {run.global_rank} step {run.global_step} exit code {guard.exit_code}", flush=True)
    sys.exit(guard.exit_code or 0)


if __name__ == "__main__":
    words = [word for word in sys.argv[4:] if word != "again"]
    chosen = {int(rank): signal.Signals[name].value for rank, name in zip(words[::2], words[1::2], strict=True)}
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], chosen)
