"""Proximal policy optimization from the command line: parse the flags, load all, build the trainer, train."""

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
    "--lora_r=8 --learning_rate=1e-3",
    "--model=Qwen/Qwen2.5-0.5B-Instruct --task=reasoning_gym:chain_sum --prompts_as_chat --lora_r=16",
    "--model=Qwen/Qwen2.5-0.5B-Instruct --dataset=prompts.jsonl --reward_model=runs/judge/model --lora_r=16",
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
    critic_model: str | None = None,
    **settings: Any,
) -> None:
    """Improve a policy by rewards or a reward model: proximal policy optimization (PPO), with or without LoRA.

    Without a flag, the model that run_sft.py makes gets better at sorting digits than its teachers were, in under
    three minutes on a CPU.

    A value function (the critic) learns beside the policy what completions will score. Under LoRA it is one more
    adapter on the policy's own backbone, and so may the reward model be; the reference is the backbone itself.

    An epoch is one iteration: prompts, completions, rewards, then --num_iterations passes over them in
    --steps_per_generation optimizer steps each. So --max_epochs counts iterations; without it, --max_steps and
    --max_time every prompt is asked once.

    Examples:
        python run_rl.py
        python run_rl.py --model=Qwen/Qwen2.5-0.5B-Instruct --task=reasoning_gym:chain_sum --prompts_as_chat
        python run_rl.py --model=./my-model --dataset=prompts.jsonl --reward_model=runs/judge/model --lora_r=16
        python run_rl.py --model=./my-model --dataset=qa.jsonl --reward_model=runs/judge/model --rewards=format:0.2
        python run_rl.py --critic=shared --critic_learning_rate=0.03 --kl_schedule=adaptive,target=0.1,horizon=10000
        python run_rl.py --config=runs/mine/config.yaml --resume=auto

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
        critic_model: folder or hub name of what --critic=separate starts from, such as the reward model; default: a
            copy of the policy.
        settings: everything else goes to RLTrainer, OnPolicyTrainer, Trainer and lightning.Trainer.
    """
    flags = by_name({name: value for name, value in locals().items() if name != "settings"})
    asked = PolicyFlags(source, data, scoring, lora, watching, keeping, job, task)

    from relax.quiet import quick_imports, quiet_libraries

    with quick_imports():
        from callbacks.rl_defaults import kl_schedules, rl_callbacks
        from relax import report
        from relax.launch import choices, loading, policy_run
        from relax.launch.job import carry_out
        from relax.plugins import build_callbacks
        from trainers import RLTrainer
        from trainers.settings import defaults_of

    quiet_libraries()
    # First what can be refused without loading anything.
    choices.check_critic(settings.get("critic"), critic_model)
    plan = policy_run.plan("rl", asked, settings, RLTrainer.check)
    kl_coef = plan.settings.get("kl_coef", defaults_of(RLTrainer)["kl_coef"])
    own = [*build_callbacks(job.callbacks or []), *kl_schedules(watching, kl_coef)]

    # Then rewards, prompts, models and trainer.
    with plan.loaded() as loaded:
        trainer = RLTrainer(
            loaded.policy,
            loaded.tokenizer,
            train_dataset=loaded.train,
            rewards=loaded.rewards,
            critic_model=loading.load_critic(critic_model, source, loaded.tokenizer),
            output_dir=plan.folder,
            config=plan.config(flags),
            callbacks=rl_callbacks(plan, loaded, own),
            logger=plan.logger,
            **plan.settings,
        )
        report.say(report.describe_model(loaded.policy, source.model or "of the task"))
        report.say(*report.describe_prompts(trainer.prompts, loaded.held_out))
        measure = plan.measure(loaded)
        carry_out(trainer, "python run_rl.py", logger=job.logger, measure=measure, advice=TRY_NEXT)


def cli(argv: Sequence[str] | None = None) -> None:
    """The console script ``relax-rl``."""
    without = (*NOT_FOR_POLICIES, "critic_model")
    run(
        main,
        argv,
        forwards=[
            Forwarded("PPO", "trainers.rl_trainer", "RLTrainer", without=without),
            Forwarded("Rollouts", "trainers.on_policy", "OnPolicyTrainer", without=without),
            Forwarded("Training", "trainers.trainer", "Trainer", without=without),
            LIGHTNING,
        ],
        groups=POLICY_GROUPS | {"PPO": ("critic", "critic_model")},
    )


if __name__ == "__main__":
    cli()
