"""What watches and steers a run of reinforcement learning, from the flags: beside the callbacks of any run."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L

from callbacks.evaluate import Evaluate
from callbacks.kl_schedule import AdaptiveKL, ConstantKL, CosineKL, KLSchedule, LinearKL
from callbacks.sample_log import SampleLog
from relax import checks
from relax.cli.inline import read_inline
from relax.cli.values import coerce
from relax.errors import UserError
from relax.launch.flags import WatchFlags
from relax.launch.rewarded import powers_of_two
from relax.rewards import Rewards

if TYPE_CHECKING:
    from relax.data.prompts import PromptDataset

KL_SCHEDULES: dict[str, type[KLSchedule]] = {
    "constant": ConstantKL,
    "linear": LinearKL,
    "cosine": CosineKL,
    "adaptive": AdaptiveKL,
}


def build_kl_schedule(text: str, kl_coef: float) -> KLSchedule:
    """The schedule that ``--kl_schedule`` names, such as ``linear,end=0,steps=1000``, to start from ``kl_coef``.

    Raises:
        UserError: no such schedule, not the settings that it takes, or nothing to start from.
    """
    name, given = read_inline("kl_schedule", text)
    checks.one_of(KL_SCHEDULES, kl_schedule=name)
    parameters = inspect.signature(KL_SCHEDULES[name]).parameters
    if given.keys() != parameters.keys():
        example = ",".join([name, *(f"{key}=NUMBER" for key in parameters)])
        raise UserError(f"--kl_schedule={text}: write it as {example}")
    try:
        settings = {key: coerce(value, parameters[key].annotation) for key, value in given.items()}
    except ValueError as error:
        raise UserError(f"--kl_schedule={text}: a setting {error}") from None
    schedule = KL_SCHEDULES[name](**settings)
    schedule.check_start(kl_coef)
    return schedule


def rl_callbacks(
    flags: WatchFlags, *, folder: Path | None, held_out: "PromptDataset | None", rewards: Rewards
) -> list[L.Callback]:
    """Evaluation on held-out prompts, if there are any, and the log of samples; to place before all that write figures.

    Args:
        flags: how often, how many.
        folder: the run's; None (a dry run) evaluates nothing, and shows samples of every step.
        held_out: prompts that are not learned from.
        rewards: what scores their answers; the function with the largest weight says which are right.
    """
    if folder is None:
        return [SampleLog(None, every_n_steps=1)]
    chosen: list[L.Callback] = []
    if held_out is not None and flags.eval_every_n_steps is not None:
        correct = max(rewards.functions, key=lambda reward: reward.weight).name
        chosen.append(
            Evaluate(
                held_out,
                rewards,
                every_n_steps=flags.eval_every_n_steps,
                num_samples=flags.eval_samples,
                ks=powers_of_two(flags.eval_samples),
                max_prompts=flags.eval_prompts,
                correct=correct,
            )
        )
    if flags.log_samples_every_n_steps is not None:
        chosen.append(SampleLog(folder, every_n_steps=flags.log_samples_every_n_steps))
    return chosen
