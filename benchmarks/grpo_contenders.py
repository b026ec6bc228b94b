"""The contenders of ``benchmarks/grpo.py``: the same iterations by ReLax and by TRL, with AdamW and clipping at 1.

Both have the clipped loss of DAPO with its mean over tokens, advantages over the group's deviation, and log every tenth
step. TRL generates with ``model.generate``. "As it comes" is TRL's own precision, and checkpointing.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from grpo_job import (
    CLIP_HIGH,
    CLIP_LOW,
    COMPLETIONS,
    ENDLESS,
    LEARNING_RATE,
    NUM_GENERATIONS,
    SEED,
    Case,
    Clock,
    even_share,
)
from side_by_side import Turns

FP32 = {"bf16": False, "gradient_checkpointing": False}


def train_relax(case: Case, clock: Clock) -> None:
    import lightning as L

    from relax.experience import Experience
    from trainers import GRPOTrainer
    from trainers.step_watch import StepWatch

    class Watch(StepWatch):
        @contextmanager
        def timed(self, part: str) -> Iterator[None]:
            with super().timed(part), clock.part(part):
                yield

    class Timed(GRPOTrainer):
        def collect(self, prompts: Any) -> Experience:
            experience = super().collect(prompts)
            clock.lengths += experience.lengths.tolist()
            return experience

    class Progress(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.steps = 0

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step > self.steps:
                self.steps = trainer.global_step
                clock.step_done()

    trainer = Timed(
        case.model(),
        case.tokenizer(),
        train_dataset=case.rows(),
        rewards=[even_share],
        batch_size=COMPLETIONS,
        micro_batch_size=case.micro_batch,
        num_generations=NUM_GENERATIONS,
        num_iterations=case.num_iterations,
        max_new_tokens=case.new,
        stop_token_ids=case.stop_ids,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        kl_coef=case.kl_coef,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        gradient_clip_val=1.0,
        seed=SEED,
        max_steps=ENDLESS,
        log_every_n_steps=10,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[Progress()],
    )
    trainer.step_watch = Watch()
    clock.begin()
    trainer.train()


def train_trl(case: Case, clock: Clock, **settings: Any) -> None:
    import trl
    from datasets import Dataset
    from transformers import LlamaForCausalLM, TrainerCallback

    class Timed(trl.GRPOTrainer):  # type: ignore[misc]
        def _generate(self, prompts: list[str]) -> Any:
            with clock.part("rollout"):
                generated = super()._generate(prompts)
            clock.lengths += [len(ids) for ids in generated[1]]
            return generated

        def _calculate_rewards(self, *args: Any) -> Any:
            with clock.part("scoring"):
                return super()._calculate_rewards(*args)

        def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
            if torch.is_grad_enabled():  # it is the forward pass of the loss
                return super()._get_per_token_logps_and_entropies(*args, **options)
            with clock.part("recall"):
                return super()._get_per_token_logps_and_entropies(*args, **options)

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.step_done()

    with tempfile.TemporaryDirectory() as folder:
        case.model().save_pretrained(folder)  # TRL reads the reference model from where the policy came from
        trainer = Timed(
            LlamaForCausalLM.from_pretrained(folder),
            reward_funcs=[even_share],
            args=trl.GRPOConfig(**trl_settings(case, folder) | settings),
            train_dataset=Dataset.from_list(case.rows()),
            processing_class=case.tokenizer(),
            callbacks=[Progress()],
        )
        clock.begin()
        trainer.train()


def trl_settings(case: Case, folder: str) -> dict[str, Any]:
    """As ``train_relax`` has them."""
    return FP32 | {
        "output_dir": folder,
        "per_device_train_batch_size": case.micro_batch,
        "gradient_accumulation_steps": COMPLETIONS // case.micro_batch,
        "num_generations": NUM_GENERATIONS,
        "num_iterations": case.num_iterations,
        "max_completion_length": case.new,
        "epsilon": CLIP_LOW,
        "epsilon_high": CLIP_HIGH,
        "beta": case.kl_coef,
        "use_bias_correction_kl": False,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "seed": SEED,
        "max_steps": ENDLESS,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


RELAX, TRL, TRL_AS_IT_COMES = "ReLax", "TRL", "TRL as it comes (bf16, checkpointing)"
CONTENDERS: dict[str, Callable[[Case, Clock], None]] = {
    RELAX: train_relax,
    TRL: train_trl,
    TRL_AS_IT_COMES: partial(train_trl, bf16=True, gradient_checkpointing=True),
}


def contend(name: str, case: Case) -> None:
    """Be this contender, until the parent process has seen enough."""
    warnings.simplefilter("ignore")
    CONTENDERS[name](case, Clock(Turns(), case.num_iterations))
    sys.exit(f"{name} ran out of steps")
