"""Callbacks of a user's own, attached by dotted path: they kill the process they run in."""

import os
import signal
from typing import Any

import lightning as L


class KillAt(L.Callback):
    """kill -9 while a micro-batch is being computed: nothing can be tidied up."""

    def __init__(self, step: int, micro_batch: int = 0) -> None:
        self.step, self.micro_batch, self.seen = step, micro_batch, 0

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        if trainer.global_step == self.step:
            if self.seen == self.micro_batch:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen += 1


class SignalAt(L.Callback):
    """A signal to itself in the middle of a step, as Ctrl-C or a scheduler would send it."""

    def __init__(self, step: int, signum: int, times: int = 1) -> None:
        self.step, self.signum, self.times = step, signum, times

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
            self.times = 0
