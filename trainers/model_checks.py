"""Before a run: whether the model computes what ReLax thinks it does, on the device and in the precision of the run."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from relax import causal_lm, run_folder
from relax.errors import UserError
from relax.export import check_export
from trainers.advice import warn_of_half_precision
from trainers.batching import decide_packing

if TYPE_CHECKING:
    from trainers.trainer import Trainer


def prepare_model(trainer: "Trainer", check_head: Callable[[nn.Module], None] = causal_lm.check_head) -> bool:
    """Bring the model to its device and look at it; whether micro-batches are packed.

    Args:
        trainer: attached to a ``lightning.Trainer``.
        check_head: refuses a model whose output is not what the loss takes it for.

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
        check_head(trainer.model)
        causal_lm.check_lengths(trainer.model, trainer.longest_row())
        return decide_packing(trainer)


def check_whole_weights(trainer: "Trainer") -> None:
    """Refuse a strategy under which no device can write with the policy by itself.

    Raises:
        UserError: one that divides the weights.
    """
    strategy = trainer.trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise UserError(
            f"rollouts need whole weights on every device, which {type(strategy).__name__} divides; use --strategy=ddp"
        )


def prepare_reference(trainer: "Trainer", reference: nn.Module, *, packed: bool) -> None:
    """Bring a reference model to the device, the precision and the layout of the policy.

    Raises:
        UserError: it does not know all tokens of the policy, its log-probs would be another one's, or it cannot be
            packed as the policy is.
    """
    causal_lm.check_companion("the reference", reference, trainer.model)
    precision = trainer.trainer.precision_plugin
    reference.to(trainer.trainer.strategy.root_device)
    precision.convert_module(reference)
    with precision.forward_context():
        causal_lm.check_head(reference)
        if packed:
            causal_lm.isolate_companion("the reference", reference)


def computes_in_half_precision(trainer: "Trainer") -> bool:
    """Whether the same tokens can have log-probs that differ in the third digit, by how they are batched."""
    half = any(p.element_size() < 4 for p in trainer.model.parameters())
    return half or trainer.trainer.precision not in ("32-true", "64-true")
