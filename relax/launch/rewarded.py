"""What the scripts of reinforcement learning decide and load: prompts, their rewards, which of them are held out."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from relax import checks
from relax.data.prompts import PromptDataset, encode_prompts, reward_columns
from relax.data.rows import Rows
from relax.data.sources.dataset_rows import named
from relax.errors import UserError
from relax.launch.backbone_reward import JUDGE, BackboneReward
from relax.launch.choices import check_data_given, check_held_out
from relax.launch.flags import ACCURACY, DataFlags, ModelFlags, RewardFlags, WatchFlags
from relax.launch.loading import load_data
from relax.rewards import Rewards, build_rewards
from relax.rewards.evaluation import Reward
from relax.rewards.reward_model import RewardModel
from relax.rewards.specs import Entry
from relax.tasks import TASKS, PromptTask, Task, find_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT = "held-out data"


class Prompts(NamedTuple):
    """Rows with prompts."""

    train: Rows
    held_out: Rows | None


def pick_prompt_task(text: str | None, *, model: str | None, dataset: str | None) -> PromptTask | None:
    """The task to learn, or None for the user's own data; without ``text`` the first of ``TASKS``.

    Raises:
        UserError: no such task, or the model and the data do not go together.
    """
    check_data_given(text, model=model, dataset=dataset)
    if dataset is not None:
        return None
    task = find_task(text or next(iter(TASKS)))
    if model is None and task not in TASKS.values():
        raise UserError(f"--task={text} needs --model=NAME: the built-in model knows only the characters of its task")
    return task


def built_in(task: PromptTask | None, *, model: str | None) -> Task | None:
    """The task whose own policy is trained, with the settings that suit it; None where the user brings a model."""
    return next((known for known in TASKS.values() if known is task), None) if model is None else None


def with_policy_of(flags: ModelFlags, task: Task | None) -> ModelFlags:
    """The flags, with the model that ships with the task."""
    return flags if task is None else replace(flags, model=str(task.policy_folder))


def pick_rewards(flags: RewardFlags, task: PromptTask | None, judge: BackboneReward | None = None) -> Rewards:
    """The functions that ``--rewards`` and ``--reward_model`` name, else the task's.

    Beside a reward model the task's own counts nothing: it is there to be looked at.

    Args:
        flags: which.
        task: whose reward is taken where none is named.
        judge: a function in place of what ``--reward_model`` would load.

    Raises:
        UserError: there are none, or one cannot be read, found or built.
    """
    chosen: list[Entry] = [*(flags.rewards or [])]
    if flags.reward_model is not None:
        chosen.append(_loaded(flags.reward_model) if judge is None else judge.entry)
    if flags.rewards is None and task is not None:
        chosen.append(task.rewards if flags.reward_model is None else _only_shown(task.rewards))
    if not chosen:
        raise UserError("--dataset needs --rewards=...: what is a completion worth? For example --rewards=math")
    return build_rewards(
        chosen,
        on_error=flags.reward_on_error,
        time_limit_seconds=flags.reward_time_limit,
        workers=flags.reward_workers,
    )


def _loaded(reward_model: str) -> Entry:
    return {"class_path": JUDGE, "init_args": {"name_or_path": reward_model}}


def _only_shown(entry: Entry) -> Entry:
    parts = entry if isinstance(entry, Mapping) else {"class_path": entry}
    return {**parts, "weight": 0.0}


def check_watching(flags: WatchFlags) -> None:
    """Refuse periods and counts that cannot be.

    Raises:
        UserError: one is not above 0.
    """
    checks.positive(
        eval_every_n_steps=flags.eval_every_n_steps,
        eval_prompts=flags.eval_prompts,
        eval_samples=flags.eval_samples,
        log_samples_every_n_steps=flags.log_samples_every_n_steps,
    )


def grader(rewards: Rewards) -> Reward:
    """The function that says which answers are right: of those that are no reward model, the one with most weight.

    A reward model says which of two answers is better.
    """
    return max(rewards.functions, key=lambda reward: (not is_judge(reward), reward.weight))


def is_judge(reward: Reward) -> bool:
    """Whether it is a reward model."""
    return isinstance(reward.function, (RewardModel, BackboneReward))


def pick_monitor(monitor: str | None, flags: WatchFlags, held_out: Rows | None, rewards: Rewards) -> str | None:
    """The figure by which the best checkpoint is chosen, or None where nothing is evaluated; warns of idle flags.

    Where nothing but a reward model scores, and nothing else is asked for, it is the reward.

    Raises:
        UserError: no evaluation has this figure, or there is none and another than the usual one is asked for.
    """
    if held_out is not None and flags.eval_every_n_steps is not None:
        if monitor is not None:
            checks.one_of(evaluated_figures(rewards, flags.eval_samples), monitor=monitor)
        return "val/reward" if monitor == ACCURACY and is_judge(grader(rewards)) else monitor
    lacking = "--eval_every_n_steps" if held_out is not None else "held-out prompts: add --val_dataset or --val_split"
    if monitor not in (None, ACCURACY):
        raise UserError(f"--monitor={monitor} needs {lacking}")
    idle = {"eval_prompts", "eval_samples"} | ({"eval_every_n_steps"} if held_out is None else set())
    given = [f"--{name}" for name in sorted(idle) if vars(flags)[name] != vars(WatchFlags())[name]]
    if given:
        warnings.warn(f"{', '.join(given)}: no effect without {lacking}", stacklevel=2)
    return None


def evaluated_figures(rewards: Rewards, num_samples: int) -> list[str]:
    """What an evaluation with so many samples logs."""
    of_functions = [f"reward_{reward.name}" for reward in rewards.functions]
    passes = [f"pass@{k}" for k in powers_of_two(num_samples)] if num_samples > 1 else []
    return [f"val/{name}" for name in ("accuracy", "reward", *of_functions, "truncated", "completion_length", *passes)]


def powers_of_two(limit: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to ``limit``: the k of pass@k."""
    return tuple(2**n for n in range(limit.bit_length()))


def encode_held_out(
    rows: Rows | None, tokenizer: "PreTrainedTokenizerBase", settings: Mapping[str, Any]
) -> PromptDataset | None:
    """Held-out prompts, written and cut off as those that are learned from.

    Args:
        rows: None gives None.
        tokenizer: the policy's.
        settings: of the trainer, as far as they are given.

    Raises:
        UserError: rows that cannot be used.
    """
    if rows is None:
        return None
    names = {"data_format": "data_format", "columns": "columns", "system_prompt": "system_prompt"}
    names |= {"prompts_as_chat": "as_chat", "max_prompt_length": "max_length", "max_dropped_share": "max_dropped_share"}
    given = {ours: settings[name] for name, ours in names.items() if name in settings}
    return encode_prompts(named(rows, HELD_OUT), tokenizer, where=HELD_OUT, **given)


def load_prompts(flags: DataFlags, task: PromptTask | None, rewards: Rewards, settings: Mapping[str, Any]) -> Prompts:
    """Rows to learn from and held-out ones, of which the first has every column that ``rewards`` ask for.

    Args:
        flags: where they are; without held-out ones, those of the task.
        task: whose rows are taken where ``flags`` names no data.
        rewards: what scores them.
        settings: of the trainer: columns and seed count.

    Raises:
        UserError: something cannot be found, read or split, or lacks a column.
    """
    check_held_out(flags)
    builtin = None if task is None else task.prompt_rows()
    train, held_out = load_data(flags, builtin=builtin, seed=settings.get("seed", 0))
    if held_out is None and task is not None:
        held_out = task.eval_rows()
    columns = settings.get("columns")
    rewards.check_columns(reward_columns(train, columns))
    if held_out is not None:
        rewards.check_columns(reward_columns(held_out, columns, where=HELD_OUT))
    return Prompts(train, held_out)
