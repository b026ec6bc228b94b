"""Where a run's figures go beside ``metrics.jsonl``. Importing this loads neither mlflow nor tensorboard."""

from relax.logging.loggers import LOGGERS, build_logger

__all__ = ["LOGGERS", "build_logger"]
