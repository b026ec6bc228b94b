"""Supervised fine-tuning from the command line: parse the flags, load model and data, build the trainer, train."""

from collections.abc import Sequence
from typing import Any, Literal

from relax.cli import Forwarded, run
from relax.launch.flags import (
    BUILT_BY_SCRIPTS,
    LIGHTNING,
    DataFlags,
    KeepFlags,
    LoRAFlags,
    ModelFlags,
    RunFlags,
    by_name,
    names,
)

GROUPS = {
    "Model": names(ModelFlags),
    "Data": (*names(DataFlags), "streaming", "task"),
    "LoRA": names(LoRAFlags),
    "Run": (*names(RunFlags), *names(KeepFlags)),
}


def main(
    *,
    source: ModelFlags,
    data: DataFlags,
    lora: LoRAFlags,
    keeping: KeepFlags,
    job: RunFlags,
    streaming: bool = False,
    task: Literal["sorting"] | None = None,
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
        source: which model.
        data: which rows.
        lora: which adapter.
        keeping: what is kept.
        job: which folder.
        streaming: read and tokenize rows while training, for data that do not fit or cannot be waited for.
        task: built-in data with a verifiable answer; its accuracy is told before and after. Default without --dataset.
        settings: everything else goes to SFTTrainer, Trainer and lightning.Trainer.
    """
    flags = by_name({name: value for name, value in locals().items() if name != "settings"})

    from relax.quiet import quick_imports, quiet_libraries

    with quick_imports():
        from callbacks.defaults import script_callbacks
        from relax import report
        from relax.launch import choices, loading
        from relax.launch.job import carry_out
        from relax.plugins import build_callbacks
        from trainers import SFTTrainer

    quiet_libraries()
    # First what can be refused without loading anything.
    builtin = choices.pick_task(task, model=source.model, dataset=data.dataset)
    if builtin is not None and source.model is None:
        settings = builtin.sft_settings | settings
    SFTTrainer.check(**settings)
    choices.check_keeping(keeping)
    choices.check_validation(data, streaming=streaming, monitor=keeping.monitor)
    choices.warn_without_effect(flags)
    adapter = choices.pick_lora(lora, quantize=source.quantize)
    folder, logger = choices.open_run("sft", job, settings, dry_run=keeping.dry_run)
    watchers = script_callbacks(
        folder,
        build_callbacks(job.callbacks or []),
        job=job,
        keeping=keeping,
        monitor=keeping.monitor,
        progress=settings.get("enable_progress_bar", True),
    )

    # Then model, data and trainer.
    seed = settings.get("seed", 0)
    policy, tokenizer = loading.load_policy(source, lora=adapter, adapter=lora.adapter, task=builtin, seed=seed)
    builtin_rows = None if builtin is None else builtin.train_rows()
    train_rows, val_rows = loading.load_or_stream(data, builtin=builtin_rows, seed=seed, streaming=streaming)
    trainer = SFTTrainer(
        policy,
        tokenizer,
        train_dataset=train_rows,
        val_dataset=val_rows,
        output_dir=folder,
        config=flags | {"output_dir": str(folder)},
        callbacks=watchers,
        logger=logger,
        **settings,
    )
    report.say(report.describe_model(policy, source.model or "of the task"))
    if trainer.val_data is not None:
        report.say(report.describe_data("Validation data", trainer.val_data))
    measure = choices.graded(builtin, policy, tokenizer)
    advice = [] if folder is None else report.next_sft_flags(folder, flags)
    carry_out(trainer, "python run_sft.py", logger=job.logger, measure=measure, advice=advice)


def cli(argv: Sequence[str] | None = None) -> None:
    """The console script ``relax-sft``."""
    run(
        main,
        argv,
        forwards=[
            Forwarded("SFT", "trainers.sft_trainer", "SFTTrainer", without=BUILT_BY_SCRIPTS),
            Forwarded("Training", "trainers.trainer", "Trainer", without=BUILT_BY_SCRIPTS),
            LIGHTNING,
        ],
        groups=GROUPS,
    )


if __name__ == "__main__":
    cli()
