"""The abstract trainer: what every way of fine-tuning shares.

It owns the life cycle: optimizer, schedule, batch layout, checkpoint content, figures of a step, ``train()``. The maths
is the subclass's ``compute_loss``. Everything that only watches or steers is a Lightning callback.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from relax import causal_lm, run_folder
from relax.checkpoint_io import make_atomic
from relax.cli import dump_config
from relax.data.batching.batches import Batch
from relax.data.batching.epoch import EpochBatches, PlannedBatches
from relax.data.batching.layout import Layout
from relax.data.batching.loader import Bookmark, ResumableLoader
from relax.data.batching.streaming import SampleStream
from relax.data.tokens.tokenized import TokenizedDataset
from relax.errors import TrainingStopped, UserError
from relax.export import export_model, model_card
from relax.figures import Figures
from relax.lightning_loop import (
    build_lightning_trainer,
    go_on_with_next_epoch,
    lightning_refusals,
    step_completed,
    step_will_be_logged,
)
from relax.lora import enable_gradient_checkpointing
from relax.optimizers import OptimizerFactory, parameter_groups, total_norm
from relax.ranks import is_main_process, leave_group_at_exit
from relax.report import say
from relax.seeding import seed_generators
from relax.shapes import different_shapes
from trainers.advice import (
    warn_of_a_validation_at_the_end_of_a_stream,
    warn_of_a_validation_that_never_comes,
    warn_of_another_accumulation,
    warn_of_settings_for_another_trainer,
    warn_without_effect,
)
from trainers.batching import (
    TrainingBatches,
    build_batches,
    check_data,
    check_end,
    longest_row,
    planned_steps,
    stream_steps,
)
from trainers.dry_run import REHEARSAL, DryRun, DryRunWatch
from trainers.loading import training_loader, validation_batches
from trainers.model_checks import prepare_model
from trainers.optimization import gradients_are_exact, optimization, set_rates
from trainers.settings import check_attached, check_lightning, check_own, defaults_of, is_plain, with_an_end


class Trainer(L.LightningModule, ABC):
    """A LightningModule that trains a causal language model; subclasses say with which loss.

    ``train()`` runs the job; ``lightning.Trainer(...).fit(module)`` gives the same losses.

    Args:
        model: transformers causal language model, or a PEFT model around one.
        tokenizer: the model's tokenizer.
        train_dataset: tokenized rows, all at hand or streamed; subclasses tokenize plain ones.
        val_dataset: held-out rows; None skips validation.
        learning_rate: the highest rate of the schedule.
        weight_decay: on matrices; biases and norms never decay.
        betas: Adam's moments; the first is the momentum of sgd.
        optimizer: adamw, adam, sgd, adafactor; from Python also a callable from parameter groups to an optimizer.
        schedule: of the learning rate over optimizer steps; wsd is stable, then decays linearly.
        warmup_steps: optimizer steps of linear warm-up; not together with warmup_ratio.
        warmup_ratio: the same as a share of all optimizer steps.
        min_lr_ratio: where the schedule ends, as a share of learning_rate.
        decay_ratio: share of the steps after warm-up in which schedule=wsd decays; default 0.3.
        batch_size: sequences in one optimizer step, over all devices.
        micro_batch_size: sequences one device computes at a time; default: its whole share of batch_size.
        max_tokens_per_micro_batch: the same by tokens, padding included: as few micro-batches as keep within it.
        packing_length: pack rows (best fit, longest first) into sequences of at most so many tokens; batch_size and
            micro_batch_size then count these.
        layout: packed lays sequences end to end without padding, padded fills up to the longest, auto packs where the
            model can; speed changes, the gradient does not.
        group_by_length: put rows of like length into the same optimizer step (less padding, less random order).
        data_workers: processes that build batches; 0 builds them in the training process.
        seed: the order of the data and the noise of every step are functions of it.
        gradient_checkpointing: compute activations again in backward, to save memory.
        compile_loss: fuse the softmax over the vocabulary with torch.compile; default: on CUDA.
        val_every_n_steps: validate every so many optimizer steps; default: after each epoch.
        merge_adapter: at export, also write the model with the adapter merged into it.
        output_dir: the run's folder; None writes nothing.
        resume: auto, or a checkpoint's path, to continue a run.
        overwrite: replace another run in output_dir.
        config: settings to record in output_dir and in the logger, beside the trainer's own.
        callbacks: Lightning callbacks.
        logger: a Lightning logger, or False.
        lightning: everything else goes to ``lightning.Trainer``: devices, num_nodes, strategy, precision, max_steps,
            max_epochs (default 1), gradient_clip_val, accumulate_grad_batches, ...

    Raises:
        UserError: a value or a combination that cannot work, naming the flag to change.
    """

    bound: ClassVar[tuple[str, ...]] = (
        *("batch_size", "packing_length", "group_by_length", "optimizer", "learning_rate", "weight_decay", "betas"),
        *("schedule", "warmup_steps", "warmup_ratio", "min_lr_ratio", "decay_ratio"),
    )
    """Settings that a run can only be continued with as they were: of data, optimizer and objective."""
    pipeline_tag: ClassVar[str] = "text-generation"
    """What the exported model is for, in the hub's words."""
    strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint checks that nothing is missing

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        train_dataset: TokenizedDataset | SampleStream | Any,
        val_dataset: TokenizedDataset | Any | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        optimizer: str | OptimizerFactory = "adamw",
        schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine",
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr_ratio: float = 0.0,
        decay_ratio: float | None = None,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        max_tokens_per_micro_batch: int | None = None,
        packing_length: int | None = None,
        layout: Literal["auto", "packed", "padded"] = "auto",
        group_by_length: bool = False,
        data_workers: int = 0,
        seed: int = 0,
        gradient_checkpointing: bool = False,
        compile_loss: bool | None = None,
        val_every_n_steps: int | None = None,
        merge_adapter: bool = False,
        output_dir: str | Path | None = None,
        resume: str | None = None,
        overwrite: bool = False,
        config: Mapping[str, Any] | None = None,
        callbacks: Sequence[L.Callback] = (),
        logger: Logger | Literal[False] = False,
        **lightning: Any,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.train_data, self.val_data = train_dataset, val_dataset
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.optimizer, self.schedule = optimizer, schedule
        self.warmup_steps, self.warmup_ratio = warmup_steps, warmup_ratio
        self.min_lr_ratio, self.decay_ratio = min_lr_ratio, decay_ratio
        self.batch_size, self.micro_batch_size, self.layout = batch_size, micro_batch_size, layout
        self.max_tokens_per_micro_batch, self.packing_length = max_tokens_per_micro_batch, packing_length
        self.group_by_length, self.data_workers, self.seed = group_by_length, data_workers, seed
        self.compile_loss, self.val_every_n_steps, self.merge_adapter = compile_loss, val_every_n_steps, merge_adapter
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.resume, self.overwrite = resume, overwrite
        self.own_callbacks, self._logger, self.lightning_settings = list(callbacks), logger, lightning
        self._figures = Figures()
        self._gradient_norms: dict[str, Tensor] | None = None
        self._own_trainer: L.Trainer | None = None
        self._rehearses = False
        self._bookmark: Bookmark | None = None
        self._loader: ResumableLoader | None = None
        own = self._own_settings()  # without those of subclasses, which check theirs themselves
        Trainer.check(**own, **lightning, resume=resume, overwrite=overwrite)
        check_data(self)
        warn_without_effect(self)
        if gradient_checkpointing:
            enable_gradient_checkpointing(model)
        own |= {"optimizer": optimizer if isinstance(optimizer, str) else "a callable", "betas": list(betas)}
        own |= {"gradient_checkpointing": gradient_checkpointing}
        own |= {name: value for name, value in lightning.items() if is_plain(value)}
        self.save_hyperparameters(own | dict(config or {}))

    @classmethod
    def check(cls, **settings: Any) -> None:
        """Refuse keywords of the constructor that cannot work, before anything is loaded.

        Raises:
            UserError: a value out of range, two settings that exclude each other, an unknown one, missing devices.
        """
        parameters = inspect.signature(Trainer).parameters
        own = defaults_of(Trainer) | {name: value for name, value in settings.items() if name in parameters}
        check_own(own)
        check_lightning({name: value for name, value in settings.items() if name not in parameters}, own, cls)

    @abstractmethod
    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and its detached figures.

        Both are scaled so that the mean over the micro-batches of an optimizer step, on all ranks, is the value of the
        whole step: sum over tokens x ``batch.step_micro_batches`` / (denominator of the step).
        """

    # The run

    def train(self, mode: bool | None = None) -> Self:
        """Run the job, or continue it; afterwards ``self.trainer`` is the ``lightning.Trainer`` that ran it.

        With ``mode``, and inside a run, it is ``nn.Module.train``: switch between training and evaluation mode.

        Raises:
            UserError: the output folder holds another run, or the checkpoint cannot be used.
        """
        if mode is not None or self._running():
            return super().train(True if mode is None else mode)
        checkpoint = run_folder.resume_point(self.output_dir, self.resume)
        if self.output_dir is not None and is_main_process():
            kind, resumed = type(self).__name__, self.resume is not None
            run_folder.claim(self.output_dir, kind=kind, resume=resumed, overwrite=self.overwrite)
        if self.resume is not None:
            say(f"Continuing from {checkpoint}" if checkpoint else "No checkpoint yet: starting at the beginning")
        self._fit(self.lightning_trainer(), checkpoint)
        return self

    def dry_run(self) -> DryRun:
        """Train the optimizer step of the first epoch with the largest micro-batch, and log and export nothing.

        The callbacks are called, but progress bars and those that write checkpoints. The weights are changed by it:
        this is for a look before the run, in a process of its own.

        Raises:
            TrainingStopped: it does not fit in memory, or the loss is not finite.
        """
        watch = DryRunWatch()
        others = [c for c in self.own_callbacks if not isinstance(c, (Checkpoint, ProgressBar))]
        self._rehearses = True
        try:
            self._fit(self.lightning_trainer(callbacks=[*others, watch], **REHEARSAL), None)
        finally:
            self._rehearses = False
        return watch.result(self.rehearsed)

    @property
    def rehearsed(self) -> str:
        """What a dry run trains on."""
        planned = isinstance(self._batches, PlannedBatches)
        return "the step with the largest micro-batch" if planned else "the first steps of the stream"

    def _fit(self, trainer: L.Trainer, checkpoint: Path | None) -> None:
        self._own_trainer = trainer
        try:
            with lightning_refusals():
                trainer.fit(self, ckpt_path=checkpoint, weights_only=True)
        except torch.OutOfMemoryError as error:
            raise TrainingStopped(
                f"out of memory ({str(error).splitlines()[0]}); lower --micro_batch_size or "
                "--max_tokens_per_micro_batch (the gradient stays the same), or add --gradient_checkpointing"
            ) from error

    def unfreeze(self) -> Self:
        """Make every parameter trainable. Lightning's own would call ``self.train()`` and so start a run."""
        self.requires_grad_(True)
        return super().train(True)

    def lightning_trainer(self, **overrides: Any) -> L.Trainer:
        """The ``lightning.Trainer`` of this run, its accumulation derived from ``batch_size`` and the devices.

        Raises:
            UserError: devices that do not exist, or a batch size that they do not divide.
        """
        saves = any(isinstance(c, Checkpoint) for c in self.own_callbacks)
        arguments = {
            "enable_checkpointing": saves,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": self.output_dir,
        } | with_an_end(self.lightning_settings, self.usual_epochs)
        if self.val_data is None:
            arguments["limit_val_batches"] = 0
        arguments |= {"callbacks": self.own_callbacks, "logger": self._logger} | overrides
        if isinstance(self.train_data, SampleStream):  # before a dry run, which has an end, too
            check_end(self, stream_steps(self.lightning_settings.get("max_steps", -1)))
        trainer = build_lightning_trainer(**arguments)
        if self.max_tokens_per_micro_batch is None:
            devices = trainer.num_nodes * trainer.num_devices
            trainer.accumulate_grad_batches = self.cut(
                devices, self.lightning_settings.get("accumulate_grad_batches")
            ).accumulate
        make_atomic(trainer)
        return trainer

    def setup(self, stage: str) -> None:
        """Lightning's hook: fix the batch layout and look whether the model computes what ReLax thinks it does."""
        if stage not in ("fit", "validate"):
            return
        self._bookmark = None  # a checkpoint, which is read after this, may bring one
        self._figures.clear()
        self._gradient_norms = None
        super().train(True)  # transformers models arrive in eval mode and Lightning leaves them there
        if self.trainer is not self._own_trainer:
            warn_of_settings_for_another_trainer(self)
        self._batches = self.build_batches(packed=self.prepare())
        layout = self._batches.builder.layout
        if self.trainer is not self._own_trainer:
            check_attached(self.trainer, layout.accumulate, self._batches.micro_batches)
        if stage == "fit":
            warn_of_another_accumulation(self, layout.accumulate)
            self.trainer.accumulate_grad_batches = layout.accumulate
        if self.val_every_n_steps is not None and self.trainer is self._own_trainer:
            self.trainer.val_check_interval = self.val_every_n_steps * self.trainer.accumulate_grad_batches
            self.trainer.check_val_every_n_epoch = None

    def prepare(self) -> bool:
        """Bring the model to its device and look at it; whether micro-batches are packed.

        Raises:
            UserError: the model cannot be trained with this loss, or not be packed where it must be.
        """
        return prepare_model(self)

    def teardown(self, stage: str) -> None:
        """Lightning's hook, after a run that ended well: leave the model as it came."""
        causal_lm.restore_attention(self.model)
        leave_group_at_exit()

    # Data

    @property
    def usual_epochs(self) -> int:
        """Epochs of a run that nothing else ends."""
        return 1

    def longest_row(self) -> int:
        """Tokens that the model will see in one row, at most, as far as it is known."""
        return longest_row(self.train_data, self.val_data)

    def build_batches(self, *, packed: bool) -> TrainingBatches:
        """The micro-batches of this rank; a ``lightning.Trainer`` is attached."""
        return build_batches(self, packed=packed)

    def train_dataloader(self) -> ResumableLoader:
        """Lightning's hook: the micro-batches of this rank."""
        self._loader = training_loader(self, self._batches, rehearses=self._rehearses, bookmark=lambda: self._bookmark)
        return self._loader

    def val_dataloader(self) -> EpochBatches | list[Any]:
        """Lightning's hook: the held-out rows of this rank, as one step over the whole set."""
        return [] if self.val_data is None else validation_batches(self.val_data, self._batches.builder)

    def on_train_start(self) -> None:
        """Lightning's hook: the run is about to begin, or to go on, and nothing is in its way."""
        if self._bookmark is not None and self._loader is not None:
            self._loader.check(self._bookmark)
            set_rates(self.trainer)
        if self._rehearses:
            return
        if self.output_dir is not None and is_main_process():
            dump_config(self.output_dir / "config.yaml", dict(self.hparams))
        if self.trainer is not self._own_trainer:
            return
        if isinstance(self._batches, PlannedBatches):
            warn_of_a_validation_that_never_comes(self, self._batches.plan.num_steps)
        elif isinstance(self.train_data, SampleStream):
            warn_of_a_validation_at_the_end_of_a_stream(self)

    # One step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Noise is a function of (seed, rank, epoch, micro-batch): a resumed run draws the same."""
        seed_generators(self.seed, self.global_rank, self.current_epoch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Lightning's hook."""
        loss, metrics = self.compute_loss(batch)
        self._figures.add({"loss": loss.detach(), **metrics})
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let a stop (a Timer's, for example) wait for the end of the optimizer step: there a checkpoint is exact."""
        if not step_completed(self.trainer):
            self.trainer.should_stop = False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the figures of the whole optimizer step, over its micro-batches and all ranks."""
        self._gradient_norms = None  # a callback may have asked for them, and another changed the gradients since
        if not step_will_be_logged(self.trainer):
            self._figures.clear()
            return
        figures = self.step_figures(self._figures.means(self.trainer.strategy))
        figures |= self.gradient_norms()
        figures["learning_rate"] = torch.tensor(optimizer.param_groups[0]["lr"])
        self.log_dict({f"train/{name}": value for name, value in figures.items()})

    def step_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of an optimizer step, given the means of ``compute_loss`` over it; on every rank."""
        return means

    def separate_parts(self) -> dict[str, list[nn.Parameter]]:
        """What is clipped, and its gradients measured, each for itself, by the name of the figure."""
        return {"grad_norm": list(self.model.parameters())}

    def gradient_norms(self) -> dict[str, Tensor]:
        """The 2-norm of the gradients of each of ``separate_parts``, computed once for all who ask before the step."""
        if self._gradient_norms is None:
            self._gradient_norms = {name: total_norm(part) for name, part in self.separate_parts().items()}
        return self._gradient_norms

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's hook, called before every optimizer step: clip by the norms that are known already."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm") and gradients_are_exact(self.trainer):
            norms = self.gradient_norms()
            for name, part in self.separate_parts().items():
                learned = [p for p in part if p.grad is not None]
                torch.nn.utils.clip_grads_with_norm_(learned, gradient_clip_val, norms[name])
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self._gradient_norms = None

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Lightning's hook: gradients go at once, not after the next forward pass, which can use their memory."""
        super().optimizer_step(*args, **options)
        self.zero_grad()

    def on_validation_epoch_start(self) -> None:
        """Start a validation's figures anew (training's are complete: validation runs between optimizer steps)."""
        self._figures.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Lightning's hook."""
        loss, metrics = self.compute_loss(batch)
        self._figures.add({"loss": loss, **metrics})

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole held-out set."""
        figures = self.validation_figures(self._figures.means(self.trainer.strategy))
        self.log_dict({f"val/{name}": value for name, value in figures.items()})

    def validation_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of a validation, given the means of ``compute_loss`` over the held-out set."""
        return means

    # Optimizer, checkpoint, export

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in the optimizer's groups; one with ``lr`` has a rate of its own.

        Raises:
            UserError: nothing is trainable.
        """
        return parameter_groups(self.model, self.weight_decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Lightning's hook: schedules count optimizer steps."""
        return optimization(self, steps=planned_steps(self), rehearses=self._rehearses)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained (under LoRA the adapter, never the frozen backbone), and the place in the data."""
        trained = self._trained()
        checkpoint["bookmark"] = None if self._loader is None else self._loader.bookmark()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or of the same model with other weights trained.

        Raises:
            UserError: a tensor is missing, superfluous or of another shape.
        """
        if different := different_shapes(self._trained(), checkpoint["state_dict"]):
            name, ours, theirs = different[0]
            raise UserError(
                f"the checkpoint belongs to another model: {name} is {theirs} there and {ours} among the trained "
                f"weights here ({len(different)} tensors differ); check --model and --lora_*"
            )
        if "bookmark" not in checkpoint:
            raise UserError("the checkpoint is not one of a ReLax run: it does not say which data have been read")
        self._bookmark = checkpoint["bookmark"]
        if isinstance(self.train_data, SampleStream):
            go_on_with_next_epoch(checkpoint)

    def export(self, folder: Path) -> None:
        """Write the model, or its adapter, with the tokenizer and a model card, as Hugging Face users load it."""
        if self.global_rank == 0:
            figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            card = model_card(
                figures=figures,
                settings=dict(self.hparams),
                trainer=type(self).__name__,
                base_model=causal_lm.base_model(self.model).name_or_path or None,
                adapter=causal_lm.is_adapted(self.model),
                pipeline_tag=self.pipeline_tag,
            )
            export_model(self.model, self.tokenizer, folder, merge_adapter=self.merge_adapter, card=card)
        self.trainer.strategy.barrier()

    @property
    def compiles_loss(self) -> bool:
        """Whether the softmax over the vocabulary is compiled: where asked, else on CUDA."""
        return self.device.type == "cuda" if self.compile_loss is None else self.compile_loss

    @property
    def beside_checkpoint(self) -> dict[str, Any]:
        """What no checkpoint holds, and a run can only be resumed with as it was, by its name in messages."""
        return {"frozen weights": causal_lm.frozen_digest(self.model)}

    # Details

    def _running(self) -> bool:
        # Not self.trainer: it raises while no trainer is attached.
        return self._trainer is not None and self._trainer.state.status == "running"

    def _trained(self) -> dict[str, nn.Parameter]:
        # With duplicates: callbacks that keep a copy of the weights look for tied ones under both their names.
        return {name: p for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}

    def cut(self, world_size: int, accumulate: int | None) -> Layout:
        """How a step is cut by count.

        Raises:
            UserError: the numbers do not multiply to ``batch_size``.
        """
        return Layout.of(self.batch_size, world_size, self.micro_batch_size, accumulate)

    def _own_settings(self) -> dict[str, Any]:
        """The plain settings by name: for the checks, and for what a checkpoint and a logger keep."""
        names = set(inspect.signature(Trainer).parameters) & self.__dict__.keys()
        return {
            name: self.__dict__[name] for name in sorted(names - {"tokenizer", "output_dir", "resume", "overwrite"})
        }
