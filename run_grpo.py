"""Reinforcement learning from rewards on the command line: parse the flags, load all, build the trainer, train."""

from collections.abc import Sequence
from typing import Any

from relax.cli import Forwarded, run
from relax.launch.flags import (
    LIGHTNING,
    NOT_FOR_POLICIES,
    POLICY_GROUPS,
    DataFlags,
    LoRAFlags,
    ModelFlags,
    PolicyFlags,
    PolicyKeepFlags,
    RewardFlags,
    RunFlags,
    WatchFlags,
    by_name,
)

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
    keeping: PolicyKeepFlags,
    job: RunFlags,
    task: str | None = None,
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
        keeping: what is kept.
        job: which folder.
        task: prompts and their reward: sorting, or reasoning_gym:NAME, perhaps with settings of that task and a number
            of prompts, as in reasoning_gym:chain_sum,max_terms=3,size=5000. Default without --dataset: sorting.
        settings: everything else goes to GRPOTrainer, OnPolicyTrainer, Trainer and lightning.Trainer.
    """
    flags = by_name({name: value for name, value in locals().items() if name != "settings"})
    asked = PolicyFlags(source, data, scoring, lora, watching, keeping, job, task)

    from relax.quiet import quick_imports, quiet_libraries

    with quick_imports():
        from callbacks.rl_defaults import kl_schedules, rl_callbacks
        from relax import report
        from relax.launch import policy_run
        from relax.launch.job import carry_out
        from relax.plugins import build_callbacks
        from trainers import GRPOTrainer
        from trainers.grpo_settings import build_method
        from trainers.settings import defaults_of

    quiet_libraries()
    # First what can be refused without loading anything.
    plan = policy_run.plan("grpo", asked, settings, GRPOTrainer.check)
    _, objective = build_method(defaults_of(GRPOTrainer) | plan.settings)
    own = [*build_callbacks(job.callbacks or []), *kl_schedules(watching, objective.kl_coef)]

    # Then rewards, prompts, model and trainer.
    with plan.loaded() as loaded:
        trainer = GRPOTrainer(
            loaded.policy,
            loaded.tokenizer,
            train_dataset=loaded.train,
            rewards=loaded.rewards,
            output_dir=plan.folder,
            config=plan.config(flags),
            callbacks=rl_callbacks(plan, loaded, own),
            logger=plan.logger,
            **plan.settings,
        )
        report.say(report.describe_model(loaded.policy, source.model or "of the task"))
        report.say(*report.describe_prompts(trainer.prompts, loaded.held_out))
        measure = plan.measure(loaded)
        carry_out(trainer, "python run_grpo.py", logger=job.logger, measure=measure, advice=TRY_NEXT)


def cli(argv: Sequence[str] | None = None) -> None:
    """The console script ``relax-grpo``."""
    run(
        main,
        argv,
        forwards=[
            Forwarded("GRPO", "trainers.grpo_trainer", "GRPOTrainer", without=NOT_FOR_POLICIES),
            Forwarded("Rollouts", "trainers.on_policy", "OnPolicyTrainer", without=NOT_FOR_POLICIES),
            Forwarded("Training", "trainers.trainer", "Trainer", without=NOT_FOR_POLICIES),
            LIGHTNING,
        ],
        groups=POLICY_GROUPS,
    )


if __name__ == "__main__":
    cli()
