"""Reinforcement learning from rewards on the command line: parse the flags, load all, build the trainer, train."""

from collections.abc import Sequence
from typing import Any, Literal

from relax.cli import Forwarded, run
from relax.launch.flags import (
    BUILT_BY_SCRIPTS,
    LIGHTNING,
    DataFlags,
    LoRAFlags,
    ModelFlags,
    RewardFlags,
    RunFlags,
    WatchFlags,
    by_name,
    names,
)

# Of the trainers' parameters: what only Python can give, and what is about rows to learn from.
NO_FLAGS = (
    *BUILT_BY_SCRIPTS,
    *("reference", "packing_length", "group_by_length", "data_workers", "val_every_n_steps"),
)
GROUPS = {
    "Model": names(ModelFlags),
    "Data": (*names(DataFlags), "task"),
    "Rewards": names(RewardFlags),
    "LoRA": names(LoRAFlags),
    "Watching": names(WatchFlags),
    "Run": (*names(RunFlags), "checkpoint_every_n_steps", "monitor", "monitor_mode", "dry_run"),
}
TRY_NEXT = (
    "--preset=gspo",
    "--model=Qwen/Qwen2.5-0.5B-Instruct --task=reasoning_gym:chain_sum --prompts_as_chat --lora_r=16",
    "--model=Qwen/Qwen2.5-0.5B-Instruct --dataset=QA.jsonl --columns='{prompt: question}' --rewards=math",
)


def main(
    *,
    source: ModelFlags,
    data: DataFlags,
    scoring: RewardFlags,
    lora: LoRAFlags,
    watching: WatchFlags,
    job: RunFlags,
    task: str | None = None,
    checkpoint_every_n_steps: int | None = 50,
    monitor: str | None = "val/accuracy",
    monitor_mode: Literal["min", "max"] = "max",
    dry_run: bool = False,
    **settings: Any,
) -> None:
    """Improve a policy by rewards: group relative policy optimization (GRPO) and its relatives, with or without LoRA.

    Without a flag, the model that run_sft.py makes gets better at sorting digits than its teachers were, in under two
    minutes on a CPU.

    An epoch is one iteration: prompts, completions, rewards, optimizer steps. So --max_epochs counts iterations;
    without it, --max_steps and --max_time every prompt is asked once.

    Examples:
        python run_grpo.py
        python run_grpo.py --model=Qwen/Qwen2.5-0.5B-Instruct --task=reasoning_gym:chain_sum --prompts_as_chat
        python run_grpo.py --model=./my-model --dataset=qa.jsonl --columns='{prompt: question}' --rewards=math
        python run_grpo.py --model=./my-model --dataset=qa.jsonl --rewards=my.scores.correct:1.0,format:0.2 --lora_r=16
        python run_grpo.py --preset=grpo --kl_schedule=linear,end=0,steps=100
        python run_grpo.py --config=runs/mine/config.yaml --resume=auto

    Args:
        source: which model.
        data: which rows.
        scoring: which rewards.
        lora: which adapter.
        watching: what is looked at.
        job: which folder.
        task: prompts and their reward: sorting, or reasoning_gym:NAME, perhaps with settings of that task and a number
            of prompts, as in reasoning_gym:chain_sum,max_terms=3,size=5000. Default without --dataset: sorting.
        checkpoint_every_n_steps: None saves at the end only.
        monitor: figure of the held-out prompts by which best.ckpt is kept; None keeps none.
        monitor_mode: whether it is better when lower (min) or higher (max).
        dry_run: sample, score and learn from one iteration, to see whether it fits, and write nothing.
        settings: everything else goes to GRPOTrainer, OnPolicyTrainer, Trainer and lightning.Trainer.
    """
    flags = by_name({name: value for name, value in locals().items() if name != "settings"})

    from relax.quiet import quick_imports, quiet_libraries

    with quick_imports():
        from callbacks import SafeInterrupt, default_callbacks
        from callbacks.rl_defaults import build_kl_schedule, rl_callbacks
        from relax import report
        from relax.launch import choices, loading, rewarded
        from relax.plugins import build_callbacks
        from trainers import GRPOTrainer
        from trainers.grpo_settings import build_method
        from trainers.settings import defaults_of

    quiet_libraries()
    # First what can be refused without loading anything.
    learned = rewarded.pick_prompt_task(task, model=source.model, dataset=data.dataset)
    builtin = rewarded.built_in(learned, model=source.model)
    if builtin is not None:
        settings = builtin.grpo_settings | settings
    GRPOTrainer.check(**settings)
    rewarded.check_watching(watching, checkpoint_every_n_steps=checkpoint_every_n_steps)
    choices.warn_without_effect(flags, "dataset", "val_dataset")
    adapter = choices.pick_lora(lora, quantize=source.quantize)
    folder, logger = choices.open_run("grpo", job, settings, dry_run=dry_run)
    own_callbacks = build_callbacks(job.callbacks or [])
    if watching.kl_schedule is not None:
        _, objective = build_method(defaults_of(GRPOTrainer) | settings)
        own_callbacks.append(build_kl_schedule(watching.kl_schedule, objective.kl_coef))

    # Then rewards, prompts, model and trainer.
    with rewarded.pick_rewards(scoring, learned) as rewards:
        prompts = rewarded.load_prompts(data, learned, rewards, settings)
        monitor = rewarded.pick_monitor(monitor, watching, prompts.held_out, rewards, default="val/accuracy")
        policy, tokenizer = loading.load_policy(
            rewarded.with_policy_of(source, builtin),
            lora=adapter,
            adapter=lora.adapter,
            task=None,
            seed=settings.get("seed", 0),
        )
        held_out = rewarded.encode_held_out(prompts.held_out, tokenizer, settings)
        watchers = choices.without_doubles(
            default_callbacks(
                folder,
                checkpoint_every_n_steps=checkpoint_every_n_steps,
                keep_checkpoints=job.keep_checkpoints,
                monitor=monitor,
                mode=monitor_mode,
                progress=settings.get("enable_progress_bar", True) and not dry_run,
            ),
            [*own_callbacks, *rl_callbacks(watching, folder=folder, held_out=held_out, rewards=rewards)],
        )
        trainer = GRPOTrainer(
            policy,
            tokenizer,
            train_dataset=prompts.train,
            rewards=rewards,
            output_dir=folder,
            config=flags | {"output_dir": str(folder)},
            callbacks=watchers,
            logger=logger,
            **settings,
        )
        report.say(report.describe_model(policy, source.model or "of the task"))
        report.say(*report.describe_prompts(trainer.prompts, held_out))
        if folder is None:
            report.say(str(trainer.dry_run()))
            return
        if builtin is not None and settings.get("resume") is None:
            report.say_accuracy("before", policy, tokenizer, builtin)

        trainer.train()

    stopped = next(watcher for watcher in watchers if isinstance(watcher, SafeInterrupt))
    report.leave_if_stopped(stopped.exit_code, "python run_grpo.py", folder)
    if builtin is not None:
        report.say_accuracy("after", policy, tokenizer, builtin)
    report.say(*report.describe_results(folder, job.logger), *report.try_next("python run_grpo.py", *TRY_NEXT))


def cli(argv: Sequence[str] | None = None) -> None:
    """The console script ``relax-grpo``."""
    run(
        main,
        argv,
        forwards=[
            Forwarded("GRPO", "trainers.grpo_trainer", "GRPOTrainer", without=NO_FLAGS),
            Forwarded("Rollouts", "trainers.on_policy", "OnPolicyTrainer", without=NO_FLAGS),
            Forwarded("Training", "trainers.trainer", "Trainer", without=NO_FLAGS),
            LIGHTNING,
        ],
        groups=GROUPS,
    )


if __name__ == "__main__":
    cli()
