"""Before a run: whether the model computes what ReLax thinks it does, on the device and in the precision of the run."""

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from relax import causal_lm, run_folder
from relax.export import check_export
from trainers.advice import warn_of_half_precision
from trainers.batching import decide_packing

if TYPE_CHECKING:
    from trainers.trainer import Trainer


def prepare_model(trainer: "Trainer") -> bool:
    """Bring the model to its device and look at it; whether micro-batches are packed.

    Raises:
        UserError: its loss would be another one's, it cannot be exported, or not be packed where it must be.
    """
    if isinstance(trainer.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        trainer.to(trainer.trainer.strategy.root_device)  # where flash attention runs, and a large model is probed fast
    if trainer.output_dir is not None:
        check_export(trainer.model, run_folder.export_folder(trainer.output_dir), merge_adapter=trainer.merge_adapter)
    warn_of_half_precision(trainer)
    precision = trainer.trainer.precision_plugin
    with precision.forward_context():  # as in training: some attention kernels take half precision only
        precision.convert_module(trainer)
        causal_lm.check_head(trainer.model)
        causal_lm.check_lengths(trainer.model, trainer.longest_row())
        return decide_packing(trainer)
