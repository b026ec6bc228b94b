"""Supervised fine-tuning from the command line: parse the flags, load model and data, build the trainer, train."""

import sys
from collections.abc import Sequence
from typing import Any, Literal

from relax.cli import Forwarded, run

BUILT_HERE = ("model", "tokenizer", "train_dataset", "val_dataset", "output_dir", "config", "callbacks", "logger")
# Lightning's arguments that the trainers set themselves, or that only Python can give.
NOT_FLAGS = (
    *("logger", "callbacks", "plugins", "enable_checkpointing", "default_root_dir", "use_distributed_sampler"),
    *("reload_dataloaders_every_n_epochs", "enable_autolog_hparams", "model_registry", "barebones"),
)
GROUPS = {
    "Model": ("model", "dtype", "attn_implementation", "revision", "chat_template", "trust_remote_code", "quantize"),
    "Data": (
        *("dataset", "dataset_name", "dataset_split", "val_dataset", "val_dataset_split", "val_split", "streaming"),
        *("task",),
    ),
    "LoRA": (
        *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save"),
        *("use_rslora", "use_dora", "adapter"),
    ),
    "Run": (
        *("output_dir", "logger", "callbacks", "checkpoint_every_n_steps", "keep_checkpoints"),
        *("monitor", "monitor_mode", "dry_run"),
    ),
}


def main(
    *,
    model: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    quantize: Literal["4bit"] | None = None,
    dataset: str | None = None,
    dataset_name: str | None = None,
    dataset_split: str = "train",
    val_dataset: str | None = None,
    val_dataset_split: str = "train",
    val_split: float | None = None,
    streaming: bool = False,
    task: Literal["sorting"] | None = None,
    lora_r: int | None = None,
    lora_alpha: int | None = None,
    lora_dropout: float | None = None,
    lora_target_modules: str | list[str] | None = None,
    lora_modules_to_save: list[str] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    adapter: str | None = None,
    output_dir: str | None = None,
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = "mlflow",
    callbacks: list[str | dict[str, Any]] | None = None,
    checkpoint_every_n_steps: int | None = 500,
    keep_checkpoints: int = 2,
    monitor: str | None = None,
    monitor_mode: Literal["min", "max"] = "min",
    dry_run: bool = False,
    **settings: Any,
) -> None:
    """Fine-tune a causal language model on examples, full weights or LoRA, on a CPU or several GPUs.

    Without a flag, a small built-in model learns to sort digits from lazy teachers, in under two minutes on a CPU.

    Examples:
        python run_sft.py
        python run_sft.py --model=Qwen/Qwen2.5-0.5B --dataset=rows.jsonl --max_epochs=3 --lora_r=16
        python run_sft.py --model=./my-model --dataset=chats.parquet --devices=8 --precision=bf16-mixed
        python run_sft.py --config=runs/mine/config.yaml --learning_rate=1e-5 --output_dir=runs/other
        python run_sft.py --config=runs/mine/config.yaml --resume=auto
        python run_sft.py --model=./my-model --dataset=a.jsonl:0.7,b.parquet:0.3 --dry_run

    Args:
        model: hub name or folder; default: the small model of --task.
        dtype: of the weights; default float32 (bfloat16 with --quantize). Mixed precision is --precision=bf16-mixed.
        attn_implementation: sdpa, eager, flash_attention_2, ...; default: what transformers picks.
        revision: branch, tag or commit of a hub model.
        chat_template: file with a Jinja chat template, in place of the tokenizer's own.
        trust_remote_code: run Python code that comes with the model.
        quantize: 4bit keeps the frozen weights as NF4 under a LoRA adapter (needs CUDA and bitsandbytes).
        dataset: .jsonl, .json, .parquet, .csv or .txt file (.gz too), folder, glob or hub name; several by commas, with
            weights as in a.jsonl:0.7,b.parquet:0.3.
        dataset_name: configuration of a hub data set.
        dataset_split: split of a hub data set or folder.
        val_dataset: held-out rows, from the same kinds of sources.
        val_dataset_split: split of them, such as validation or test.
        val_split: hold out this share of the rows (or this number, from 1 on).
        streaming: read and tokenize rows while training, for data that do not fit or cannot be waited for.
        task: built-in data with a verifiable answer; its accuracy is told before and after. Default without --dataset.
        lora_r: rank of a LoRA adapter; without it all weights are trained.
        lora_alpha: the adapter's update is scaled by alpha / r; default 32.
        lora_dropout: dropout on the adapter's input.
        lora_target_modules: names of the layers to adapt, or one regular expression; default all-linear.
        lora_modules_to_save: modules to train in full beside the adapter, such as lm_head.
        use_rslora: scale by alpha / sqrt(r).
        use_dora: learn magnitude and direction apart.
        adapter: continue this adapter (folder or hub name) instead of a new one.
        output_dir: the run's folder; default runs/sft-DATE-TIME.
        logger: where figures go, beside metrics.jsonl in the run's folder.
        callbacks: your own Lightning callbacks by dotted path; with arguments in --config as class_path, init_args.
        checkpoint_every_n_steps: None saves at the end only.
        keep_checkpoints: how many of the newest stay.
        monitor: validation figure by which best.ckpt is kept, such as val/loss.
        monitor_mode: whether it is better when lower (min) or higher (max).
        dry_run: look at the data, train one step, the largest, to see whether it fits, and write nothing.
        settings: everything else goes to SFTTrainer, Trainer and lightning.Trainer.
    """
    flags = {name: value for name, value in locals().items() if name != "settings"}

    from relax.quiet import quick_imports, quiet_libraries

    with quick_imports():
        from callbacks import SafeInterrupt, default_callbacks
        from relax import checks, launch, report
        from relax.logging import build_logger
        from relax.plugins import build_callbacks
        from trainers import SFTTrainer

    quiet_libraries()
    # First what can be refused without loading anything.
    builtin = launch.pick_task(task, model=model, dataset=dataset)
    if builtin is not None and model is None:
        settings = builtin.sft_settings | settings
    SFTTrainer.check(**settings)
    checks.positive(checkpoint_every_n_steps=checkpoint_every_n_steps, keep_checkpoints=keep_checkpoints)
    launch.check_validation(flags)
    launch.warn_without_effect(flags)
    lora = launch.pick_lora(flags)
    resume, seed = settings.get("resume"), settings.get("seed", 0)
    if dry_run:
        launch.check_dry_run(settings)
    overwrite = settings.get("overwrite", False)
    folder = None if dry_run else launch.pick_folder("sft", output_dir, resume=resume, overwrite=overwrite)
    run_logger = False if folder is None else build_logger(logger, folder)
    watchers = launch.without_doubles(
        default_callbacks(
            folder,
            checkpoint_every_n_steps=checkpoint_every_n_steps,
            keep_checkpoints=keep_checkpoints,
            monitor=monitor,
            mode=monitor_mode,
            progress=settings.get("enable_progress_bar", True) and not dry_run,
        ),
        build_callbacks(callbacks or []),
    )

    # Then model, data and trainer.
    policy, tokenizer = launch.load_policy(flags, lora, builtin, seed)
    train_rows, val_rows = launch.load_data(flags, builtin, seed)
    trainer = SFTTrainer(
        policy,
        tokenizer,
        train_dataset=train_rows,
        val_dataset=val_rows,
        output_dir=folder,
        config=flags | {"output_dir": str(folder)},
        callbacks=watchers,
        logger=run_logger,
        **settings,
    )
    report.say(report.describe_model(policy, model or "of the task"))
    if trainer.val_data is not None:
        report.say(report.describe_data("Validation data", trainer.val_data))
    if folder is None:
        report.say(str(trainer.dry_run()))
        return
    if builtin is not None and resume is None:
        report.say_accuracy("before", policy, tokenizer, builtin)

    trainer.train()

    interrupt = next(c for c in watchers if isinstance(c, SafeInterrupt))
    if interrupt.exit_code is not None:
        report.say(f"Stopped; continue with: python run_sft.py --config={folder}/config.yaml --resume=auto")
        sys.exit(interrupt.exit_code)
    if builtin is not None:
        report.say_accuracy("after", policy, tokenizer, builtin)
    report.say(*report.describe_results(folder, logger), *report.describe_next("python run_sft.py", folder, flags))


def cli(argv: Sequence[str] | None = None) -> None:
    """The console script ``relax-sft``."""
    run(
        main,
        argv,
        forwards=[
            Forwarded("SFT", "trainers.sft_trainer", "SFTTrainer", without=BUILT_HERE),
            Forwarded("Training", "trainers.trainer", "Trainer", without=BUILT_HERE),
            Forwarded("Lightning", "lightning.pytorch.trainer.trainer", "Trainer", without=NOT_FLAGS, brief=True),
        ],
        groups=GROUPS,
    )


if __name__ == "__main__":
    cli()
