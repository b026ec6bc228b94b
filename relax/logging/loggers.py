"""The loggers that ``--logger`` names."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from relax.checks import one_of
from relax.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def _none(folder: Path) -> Literal[False]:
    return False


def _csv(folder: Path) -> "Logger":
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name="logs")  # every resumption writes a version_N of its own


def _tensorboard(folder: Path) -> "Logger":
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="logs", version="")
    except ModuleNotFoundError as error:
        raise UserError("--logger=tensorboard needs tensorboard; pip install 'relax-trainers[tensorboard]'") from error


def _mlflow(folder: Path) -> "Logger":
    from relax.logging.mlflow_logger import BufferedMLFlowLogger

    return BufferedMLFlowLogger(folder, save_dir=folder.parent)  # one local store for the runs beside each other


LOGGERS: dict[str, "Callable[[Path], Logger | Literal[False]]"] = {
    "none": _none,
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}


def build_logger(name: str, folder: Path) -> "Logger | Literal[False]":
    """The logger of that name for the run in ``folder``; False, which Lightning takes too, for ``none``.

    Raises:
        UserError: no such name, or its package is not installed.
    """
    one_of(LOGGERS, logger=name)
    return LOGGERS[name](folder)
