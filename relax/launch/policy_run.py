"""A run that learns from rewards, from its flags to what its trainer is built of: the way of run_grpo.py and run_rl.py.

First all that can be refused without loading anything (`plan`), then rewards, prompts and policy (`PolicyRun.loaded`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relax.data.prompts import PromptDataset
from relax.data.rows import Rows
from relax.launch import choices, loading, rewarded
from relax.launch.backbone_reward import BackboneReward
from relax.launch.flags import PolicyFlags, by_name
from relax.lora import LoRASettings
from relax.rewards import Rewards
from relax.tasks import PromptTask, Task

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """What a trainer is built of. ``monitor`` is the figure that says which checkpoint is the best, if there is one."""

    policy: "nn.Module"
    tokenizer: "PreTrainedTokenizerBase"
    train: Rows
    held_out: PromptDataset | None
    rewards: Rewards
    monitor: str | None


@dataclass(frozen=True)
class PolicyRun:
    """What is decided before anything is loaded.

    Attributes:
        flags: as they were given.
        settings: of the trainer.
        learned: the task whose prompts are asked; None for the user's own data.
        builtin: the same where its own policy is trained.
        adapter: a new one.
        folder: the run's; None for a dry run.
        logger: the run's.
    """

    flags: PolicyFlags
    settings: dict[str, Any]
    learned: PromptTask | None
    builtin: Task | None
    adapter: LoRASettings | None
    folder: Path | None
    logger: "Logger | Literal[False]"

    @contextmanager
    def loaded(self) -> Iterator[Loaded]:
        """Rewards, whose processes end with the block; prompts; the policy: in this order, for it may be large.

        Raises:
            UserError: something cannot be found, read or used.
        """
        flags, settings = self.flags, self.settings
        adapted = self.adapter is not None or flags.lora.adapter is not None
        source = rewarded.with_policy_of(flags.source, self.builtin)
        judge = BackboneReward.pick(flags.scoring.reward_model, source.model, source.revision) if adapted else None
        with rewarded.pick_rewards(flags.scoring, self.learned, judge) as rewards:
            train, held_out = rewarded.load_prompts(flags.data, self.learned, rewards, settings)
            monitor = rewarded.pick_monitor(flags.keeping.monitor, flags.watching, held_out, rewards)
            seed, continued = settings.get("seed", 0), flags.lora.adapter
            policy, tokenizer = loading.load_policy(source, lora=self.adapter, adapter=continued, task=None, seed=seed)
            if judge is not None:
                judge.attach(policy, tokenizer)
            prompts = rewarded.encode_held_out(held_out, tokenizer, settings)
            yield Loaded(policy, tokenizer, train, prompts, rewards, monitor)

    def measure(self, loaded: Loaded) -> Callable[[str], None] | None:
        """Says the accuracy in the task whose own policy is trained."""
        return choices.graded(self.builtin, loaded.policy, loaded.tokenizer)

    def config(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """What the run's folder keeps of the script's flags."""
        return {**flags, "output_dir": str(self.folder)}


def plan(
    kind: Literal["grpo", "rl"], flags: PolicyFlags, settings: Mapping[str, Any], check: Callable[..., None]
) -> PolicyRun:
    """What can be decided, and refused, before anything is loaded.

    Args:
        kind: of run: whose settings the task has, and of a new folder's name.
        flags: of the script.
        settings: what it hands on to the trainer; those of the built-in task go under them.
        check: the trainer's own, of its keywords.

    Raises:
        UserError: something that cannot be.
    """
    source, keeping = flags.source, flags.keeping
    learned = rewarded.pick_prompt_task(flags.task, model=source.model, dataset=flags.data.dataset)
    builtin = rewarded.built_in(learned, model=source.model)
    usual = {} if builtin is None else {"grpo": builtin.grpo_settings, "rl": builtin.rl_settings}[kind]
    settings = {**usual, **settings}
    check(**settings)
    rewarded.check_watching(flags.watching)
    choices.check_keeping(keeping)
    choices.warn_without_effect(by_name(vars(flags)), "dataset", "val_dataset")
    adapter = choices.pick_lora(flags.lora, quantize=source.quantize)
    folder, logger = choices.open_run(kind, flags.job, settings, dry_run=keeping.dry_run)
    return PolicyRun(flags, settings, learned, builtin, adapter, folder, logger)
