"""A run of SafeInterrupt as a script, for tests that send it signals: FOLDER DEVICES MOMENT [RANK SIGNAL]...

At MOMENT (step=N or setup) every given RANK gets its SIGNAL, from itself; with "again" at the end, twice.
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


def main(folder: Path, devices: int, moment: str, signals: dict[int, int]) -> None:
    guard = SafeInterrupt(folder)
    sender = Sender(moment, signals)
    distributed = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    run = trainer(
        Checkpoint(folder, save_at_end=False),
        guard,
        StepSeed(),
        MetricsFile(folder / "metrics.jsonl"),
        accumulate_grad_batches=2,
        **distributed,
    )
    run.callbacks.append(sender)  # last, so that the guard is set up when the signal comes
    run.fit(Tiny())
    print(f"rank {run.global_rank} step {run.global_step} exit code {guard.exit_code}", flush=True)
    sys.exit(guard.exit_code or 0)


if __name__ == "__main__":
    words = [word for word in sys.argv[4:] if word != "again"]
    chosen = {int(rank): signal.Signals[name].value for rank, name in zip(words[::2], words[1::2], strict=True)}
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], chosen)
