"""What watches and steers a run of reinforcement learning, from the flags: beside the callbacks of any run."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L

from callbacks.defaults import script_callbacks
from callbacks.evaluate import Evaluate
from callbacks.kl_schedule import AdaptiveKL, ConstantKL, CosineKL, KLSchedule, LinearKL
from callbacks.sample_log import SampleLog
from relax import checks
from relax.cli.inline import read_inline
from relax.cli.values import coerce
from relax.errors import UserError
from relax.launch.flags import WatchFlags
from relax.launch.policy_run import Loaded, PolicyRun
from relax.launch.rewarded import grader, powers_of_two
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


def kl_schedules(flags: WatchFlags, kl_coef: float) -> list[L.Callback]:
    """That of ``--kl_schedule``, if it is given.

    Raises:
        UserError: as ``build_kl_schedule``.
    """
    return [] if flags.kl_schedule is None else [build_kl_schedule(flags.kl_schedule, kl_coef)]


def rl_callbacks(run: PolicyRun, loaded: Loaded, own: Sequence[L.Callback]) -> list[L.Callback]:
    """The default ones, those that look at the policy, and ``own``."""
    keeping = run.flags.keeping
    return script_callbacks(
        run.folder,
        [*own, *watchers(run.flags.watching, folder=run.folder, held_out=loaded.held_out, rewards=loaded.rewards)],
        job=run.flags.job,
        keeping=keeping,
        monitor=loaded.monitor,
        progress=run.settings.get("enable_progress_bar", True),
    )


def watchers(
    flags: WatchFlags, *, folder: Path | None, held_out: "PromptDataset | None", rewards: Rewards
) -> list[L.Callback]:
    """Evaluation on held-out prompts, if there are any, and the log of samples; to place before all that write figures.

    Args:
        flags: how often, how many.
        folder: the run's; None (a dry run) evaluates nothing, and shows samples of every step.
        held_out: prompts that are not learned from.
        rewards: what scores their answers; ``grader`` picks the function that says which are right.
    """
    if folder is None:
        return [SampleLog(None, every_n_steps=1)]
    chosen: list[L.Callback] = []
    if held_out is not None and flags.eval_every_n_steps is not None:
        chosen.append(
            Evaluate(
                held_out,
                rewards,
                every_n_steps=flags.eval_every_n_steps,
                num_samples=flags.eval_samples,
                ks=powers_of_two(flags.eval_samples),
                max_prompts=flags.eval_prompts,
                correct=grader(rewards).name,
            )
        )
    if flags.log_samples_every_n_steps is not None:
        chosen.append(SampleLog(folder, every_n_steps=flags.log_samples_every_n_steps))
    return chosen
