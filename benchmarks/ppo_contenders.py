"""The contenders of ``benchmarks/ppo.py``: the same updates by ReLax, by a loop written by hand, and by TRL 1.12.

All have AdamW, whitened advantages, the KL penalty (k1) in the rewards, and a policy, a critic, a reference and a
reward model of equal size, in fp32 and without checkpointing; TRL's own bf16 and checkpointing do nothing in its PPO.
TRL does not clip gradients here, the others do, at 1. ReLax and TRL log each update. TRL 1.12, the last with PPO, lives
in an environment of its own; see ``ppo.py``.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any, Literal

import torch
from ppo_job import COMPLETIONS, ENDLESS, EPOCHS, LEARNING_RATE, SEED, Clock, PPOCase
from side_by_side import Turns

Critic = Literal["separate", "shared"]


def train_relax(case: PPOCase, clock: Clock, critic: Critic = "separate") -> None:
    import lightning as L

    from relax.experience import Experience
    from relax.rewards.reward_model import RewardModel
    from trainers import RLTrainer
    from trainers.step_watch import StepWatch

    class Watch(StepWatch):
        @contextmanager
        def timed(self, part: str) -> Iterator[None]:
            with super().timed(part):
                yield
            if part == "rollout":
                clock.phase("score")

    class Timed(RLTrainer):
        def collect(self, prompts: Any) -> Experience:
            experience = super().collect(prompts)
            clock.wrote(experience.lengths.tolist())
            clock.phase("update")
            return experience

    class Progress(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.steps = 0

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step > self.steps and trainer.global_step % EPOCHS == 0:
                clock.update_done()
            self.steps = trainer.global_step

    with tempfile.TemporaryDirectory() as folder:
        case.save_reward_model(folder)
        trainer = Timed(
            case.model(),
            case.tokenizer(),
            train_dataset=case.rows(),
            rewards=[RewardModel(folder)],
            critic=critic,
            stop_token_ids=case.stop_ids,
            seed=SEED,
            max_steps=ENDLESS,
            log_every_n_steps=EPOCHS,
            accelerator="cpu",
            enable_progress_bar=False,
            callbacks=[Progress()],
            **relax_settings(case),
        )
        trainer.step_watch = Watch()
        clock.begin()
        trainer.train()


def relax_settings(case: PPOCase) -> dict[str, Any]:
    """The rest are defaults: clip and value clip 0.2, value loss times 0.1, gamma 1, lambda 0.95, whitening."""
    return {
        "batch_size": COMPLETIONS,
        "micro_batch_size": case.micro_batch,
        "num_generations": 1,
        "num_iterations": case.num_iterations,
        "max_new_tokens": case.new,
        "kl_coef": case.kl_coef,
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "gradient_clip_val": 1.0,
    }


def train_by_hand(case: PPOCase, clock: Clock) -> None:
    ppo = by_hand(case)
    prompts = case.prompt_ids()
    clock.begin()
    for start in cycle(range(0, len(prompts), COMPLETIONS)):
        rollout = ppo.generate(prompts[start : start + COMPLETIONS])
        clock.wrote(rollout.kept.sum(1).tolist())
        clock.phase("score")
        experience = ppo.score(rollout)
        clock.phase("update")
        ppo.update(experience)
        clock.update_done()


def by_hand(case: PPOCase) -> Any:
    """The loop with the case's models."""
    from ppo_by_hand import PPO, Rollout, Settings, positions

    scorer = case.classifier().eval().requires_grad_(False)

    def reward(rollout: Rollout) -> torch.Tensor:
        body = scorer.model(rollout.ids, attention_mask=rollout.mask.long(), position_ids=positions(rollout.mask))
        rows, last = torch.arange(len(rollout.ids)), rollout.ends()
        last -= torch.isin(rollout.ids[rows, last], torch.tensor(case.stop_ids)).long()  # it is no part of the text
        scores: torch.Tensor = scorer.score(body.last_hidden_state[rows, last])
        return scores.squeeze(-1)

    settings = Settings(
        case.new,
        case.stop_ids,
        batch_size=COMPLETIONS,
        micro_batch_size=case.micro_batch,
        num_iterations=case.num_iterations,
        learning_rate=LEARNING_RATE,
        critic_learning_rate=LEARNING_RATE,
        kl_coef=case.kl_coef,
    )
    return PPO(case.model(), reward, settings, seed=SEED)


def train_trl(case: PPOCase, clock: Clock) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def timed_generation(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        written = generate(model, queries, *args)
        clock.wrote((written[0][:, queries.shape[1] :] != case.pad_id).sum(1).tolist())
        clock.phase("score")
        return written

    def timed_forward(*args: Any) -> Any:
        if torch.is_grad_enabled():
            clock.phase("update")
        return forward(*args)

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.update_done()

    ppo_trainer.batch_generation, ppo_trainer.forward = timed_generation, timed_forward
    policy, rows = case.model(), [{"input_ids": ids} for ids in case.prompt_ids()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            PPOConfig(**trl_settings(case, folder)),
            case.tokenizer(),
            policy,
            case.model(),
            reward_model=case.classifier(),
            train_dataset=Dataset.from_list(rows),
            value_model=case.classifier(policy),
            callbacks=[Progress()],
        )
        policy.generation_config.eos_token_id = case.stop_ids or None  # its own setting takes one token only
        clock.begin()
        trainer.train()


def trl_settings(case: PPOCase, folder: str) -> dict[str, Any]:
    """As ``relax_settings``."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": case.micro_batch,
        "gradient_accumulation_steps": COMPLETIONS // case.micro_batch,
        "local_rollout_forward_batch_size": COMPLETIONS,
        "num_mini_batches": 1,
        "num_ppo_epochs": case.num_iterations,
        "response_length": case.new,
        "temperature": 1.0,
        "kl_coef": case.kl_coef,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "total_episodes": ENDLESS,
        "num_sample_generations": 0,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": SEED,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


RELAX, SHARED, BY_HAND, TRL = "ReLax", "ReLax, critic=shared", "hand-written", "TRL 1.12"
CONTENDERS: dict[str, Callable[[PPOCase, Clock], None]] = {
    RELAX: train_relax,
    SHARED: partial(train_relax, critic="shared"),
    BY_HAND: train_by_hand,
    TRL: train_trl,
}


def contend(name: str, case: PPOCase) -> None:
    """Be this contender, until the parent process has seen enough."""
    warnings.simplefilter("ignore")
    CONTENDERS[name](case, Clock(Turns()))
    sys.exit(f"{name} ran out of steps")
