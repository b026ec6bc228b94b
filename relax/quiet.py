"""What libraries print on their own and nobody needs: silenced for the scripts, where every line should matter.

Warnings that tell of a mistake stay.
"""

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning, about PyTorch's own tree utilities
    ".*does not have many workers.*",  # batches are built from tokens in memory
    ".*Total length of `list` across ranks is zero.*",  # a run without validation data
)


def quiet_libraries() -> None:
    """Silence notes on the machine, tips, and progress bars of moments; call it before anything is loaded."""
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it sets its loggers up anew when it is imported
    warnings.formatwarning = _one_line
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


@contextmanager
def quick_imports() -> Iterator[None]:
    """No garbage collection while libraries load, nor of what they made: it stays, and is hundreds of thousands of
    objects, which the collector would look through again and again, for a fifth of the time to the first step.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()


@contextmanager
def without_load_report() -> Iterator[None]:
    """While weights are read whose absence is told elsewhere, such as those of a head that is to be fresh."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {message}\n"
