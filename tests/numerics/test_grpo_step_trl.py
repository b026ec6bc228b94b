"""Whole optimizer steps of GRPOTrainer against those of TRL's trainers on the same completions, where TRL is there."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_run import MAX_NEW_TOKENS, Steps, flat, other_policy, policy, train
from torch import Tensor
from transformers import TrainerCallback

from relax.experience import Experience
from relax.policy_gradient import PRESETS
from relax.tasks.sorting import Sorting

trl = pytest.importorskip("trl", minversion="1.16")
datasets = pytest.importorskip("datasets")

PLAIN = {"loss_type": "grpo", "epsilon": 0.2, "scale_rewards": "group", "use_bias_correction_kl": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": PLAIN,
    "dapo": PLAIN | {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": PLAIN | {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "gspo": PLAIN | {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": PLAIN | {"loss_type": "cispo", "epsilon_high": 5.0},
    "rloo": {},
}
PENALTIES = {"grpo": 0.04, "rloo": 0.05}


class Gradients(TrainerCallback):
    """Of every optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        parameters = known["model"].parameters()
        self.gradients.append(flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]))


def their_steps(preset: str, experience: Experience, reference: Any, folder: Path) -> list[Tensor]:
    """What TRL makes of the same completions: a step of two micro-batches, and another one over the same."""
    tokenizer = Sorting().build_tokenizer()
    trainer_class, config_class = (
        (trl.RLOOTrainer, trl.RLOOConfig) if preset == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)
    )
    config = config_class(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, max_steps=2,
        per_device_train_batch_size=16, gradient_accumulation_steps=2, num_generations=4, num_iterations=2,
        max_completion_length=MAX_NEW_TOKENS, temperature=0.8, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
        lr_scheduler_type="constant", save_strategy="no", disable_tqdm=True, beta=PENALTIES.get(preset, 0.0),
        **SETTINGS[preset],
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": tokenizer.decode(ids)} for ids in experience.prompts])
    scores = dict(zip(completions(experience), experience.completions["score"].tolist(), strict=True))
    seen, model = Gradients(), policy().double()
    model.save_pretrained(folder)  # from where TRL makes a reference of its own
    model.config._name_or_path = str(folder)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [scores[tuple(ids)] for ids in completion_ids]

    trainer = trainer_class(model, reward, config, rows, processing_class=tokenizer, callbacks=[seen])
    if preset in PENALTIES:
        trainer.ref_model.double().load_state_dict(reference.double().state_dict())
    left: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for index, ids in enumerate(completions(experience)):
        left[tuple(experience.prompt(index))].append(list(ids))

    def generate(prompts: list[list[int]], *_: Any) -> Any:
        chosen = [left[tuple(prompt)].pop(0) for prompt in prompts]
        return chosen if preset == "rloo" else (chosen, None)

    trainer._generate_single_turn = generate
    trainer.train()
    return seen.gradients


def completions(experience: Experience) -> list[tuple[int, ...]]:
    return [tuple(experience.completion(i)) for i in range(len(experience))]


def our_steps(preset: str, reference: Any) -> Steps:
    penalty = reference if preset in PENALTIES else None
    cycle = {"batch_size": 32, "micro_batch_size": 8, "steps_per_generation": 1, "num_iterations": 2, "max_steps": 2}
    return train(preset=preset, temperature=0.8, reference=penalty, **cycle)[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_two_steps_over_the_same_completions_are_those_of_trl(preset: str, tmp_path: Path) -> None:
    """The second one is off policy. TRL's advantages are fp32."""
    ours = our_steps(preset, other_policy())
    theirs = their_steps(preset, ours.experiences[0], other_policy(), tmp_path)
    assert len(theirs) == len(ours.gradients) == 2
    for found, expected in zip(ours.gradients, theirs, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5
