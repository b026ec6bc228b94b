"""A reward model from the command line: parse the flags, load model and preference pairs, build the trainer, train."""

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
    "Data": (*names(DataFlags), "task"),
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
    task: Literal["sorting"] | None = None,
    **settings: Any,
) -> None:
    """Train a reward model on preference pairs (Bradley-Terry): full weights or LoRA, on a CPU or several GPUs.

    Without a flag, a model that starts from the one run_sft.py makes learns to tell sorted digits from lazy and
    careless answers, in under a minute on a CPU.

    The result gives a text one score, as a Hugging Face sequence classifier; run_rl.py --reward_model=FOLDER and
    run_grpo.py --reward_model=FOLDER learn from it.

    Examples:
        python run_reward.py
        python run_reward.py --model=Qwen/Qwen2.5-0.5B-Instruct --dataset=pairs.jsonl --val_split=0.05 --lora_r=16
        python run_reward.py --model=./my-model --dataset=pairs.parquet --devices=8 --precision=bf16-mixed
        python run_reward.py --model=./my-model --dataset=rated.jsonl --margin_column=rating_gap --centering_coef=0.01
        python run_reward.py --model=runs/judge/model --dataset=more.jsonl --learning_rate=5e-6
        python run_reward.py --config=runs/mine/config.yaml --resume=auto

    Args:
        source: which model.
        data: which rows.
        lora: which adapter.
        keeping: what is kept.
        job: which folder.
        task: built-in pairs, and the model that learns to judge them. Default without --dataset.
        settings: everything else goes to RewardTrainer, Trainer and lightning.Trainer.
    """
    flags = by_name({name: value for name, value in locals().items() if name != "settings"})

    from relax.quiet import quick_imports, quiet_libraries

    with quick_imports():
        from callbacks.defaults import script_callbacks
        from relax import report
        from relax.launch import choices, loading, rewarded
        from relax.launch.job import carry_out, judged
        from relax.plugins import build_callbacks
        from trainers import RewardTrainer

    quiet_libraries()
    # First what can be refused without loading anything.
    builtin = choices.pick_task(task, model=source.model, dataset=data.dataset)
    if builtin is not None and source.model is None:
        settings = builtin.reward_settings | settings
    RewardTrainer.check(**settings)
    choices.check_keeping(keeping)
    choices.check_validation(data, streaming=False, monitor=None if builtin else keeping.monitor)
    choices.warn_without_effect(flags)
    adapter = choices.pick_lora(lora, quantize=source.quantize)
    folder, logger = choices.open_run("reward", job, settings, dry_run=keeping.dry_run)
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
    started = source if source.model else rewarded.with_policy_of(source, builtin)
    judge, tokenizer = loading.load_judge(started, lora=adapter, adapter=lora.adapter, seed=seed)
    builtin_pairs = None if builtin is None else builtin.preference_rows()
    pairs, held_out = loading.load_data(data, builtin=builtin_pairs, seed=seed)
    if held_out is None and builtin is not None:
        held_out = builtin.held_out_preference_rows()
    trainer = RewardTrainer(
        judge,
        tokenizer,
        train_dataset=pairs,
        val_dataset=held_out,
        output_dir=folder,
        config=flags | {"output_dir": str(folder)},
        callbacks=watchers,
        logger=logger,
        **settings,
    )
    report.say(report.describe_model(judge, source.model or "of the task"))
    advice = [] if folder is None else report.next_reward_commands(folder, flags)
    measure = judged(trainer, None if trainer.val_data is None else len(trainer.val_data))
    carry_out(trainer, "python run_reward.py", logger=job.logger, measure=measure, advice=advice)


def cli(argv: Sequence[str] | None = None) -> None:
    """The console script ``relax-reward``."""
    run(
        main,
        argv,
        forwards=[
            Forwarded("Reward model", "trainers.reward_trainer", "RewardTrainer", without=BUILT_BY_SCRIPTS),
            Forwarded("Training", "trainers.trainer", "Trainer", without=BUILT_BY_SCRIPTS),
            LIGHTNING,
        ],
        groups=GROUPS,
    )


if __name__ == "__main__":
    cli()
