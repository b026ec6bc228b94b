"""Peak memory of PPO with each of the three critics, with and without LoRA, and by how the reward model is kept.

    python benchmarks/ppo_memory.py
    python benchmarks/ppo_memory.py --sizes tiny --micro_batch 64

The peak of a whole run, models included, over what the imported libraries took: rollout, scores, update, all twice, so
that the optimizer's moments are there. Each run is a process of its own. 16 completions of 64 new tokens to prompts of
26, in micro-batches of 8, fp32, no checkpointing; the Llama shapes of ``grpo_job.py``, whose reward model has the
policy's size. In brackets: in sizes of the policy's weights. "No critic" is ``GRPOTrainer``, for what a critic adds.
Seconds are not measured here, but in ``ppo.py``. glibc keeps much of what is freed between the passes of critic and
policy; what is really needed at one time shows with ``MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536`` set.
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from grpo_job import SIZES
from ppo_job import LEARNING_RATE, SEED, PPOCase
from side_by_side import (
    MEGABYTE,
    Contender,
    PeakMemory,
    Turns,
    benchmark_arguments,
    print_machine,
    print_table,
    write_json,
)
from transformers import LlamaForCausalLM

COMPLETIONS, MICRO_BATCH, LORA_R = 16, 8, 16
NONE, CRITICS = "no critic", ("adapter", "separate", "shared")
FUNCTION, MODEL, ADAPTER = "a function", "a model", "one more adapter"


class FullCase(PPOCase):
    """Its model has a row for every token of the tokenizer, as a reward model on the policy's backbone demands."""

    def model(self) -> LlamaForCausalLM:
        model = super().model()
        model.resize_token_embeddings(len(self.tokenizer()), mean_resizing=False)
        return model


@dataclass(frozen=True)
class Roles:
    """What there is beside policy and critic."""

    lora: bool
    reference: bool
    reward: str

    def __str__(self) -> str:
        trained = f"LoRA, rank {LORA_R}" if self.lora else "all weights"
        reference = ("the base" if self.lora else "a copy") if self.reference else "none"
        return f"{trained}; reference: {reference}; reward: {self.reward}"

    @property
    def critics(self) -> tuple[str, ...]:
        return (NONE, *CRITICS) if self.lora else (NONE, *CRITICS[1:])


ROLES = (
    Roles(lora=False, reference=False, reward=FUNCTION),
    Roles(lora=False, reference=True, reward=FUNCTION),
    Roles(lora=False, reference=True, reward=MODEL),
    Roles(lora=True, reference=True, reward=FUNCTION),
    Roles(lora=True, reference=True, reward=MODEL),
    Roles(lora=True, reference=True, reward=ADAPTER),
)


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--micro_batch", type=int, default=MICRO_BATCH, help="completions of one forward pass")
    options = parser.parse_args()
    if options.contender:
        be(options)
    machine = print_machine(options.threads)
    everything = {}
    for size in options.sizes[:1] if options.quick else options.sizes:
        case = FullCase(size, size=size)
        with tempfile.TemporaryDirectory() as folder:
            save_reward_models(case, Path(folder))
            everything[size] = [measure(case, roles, folder, options.threads) for roles in ROLES]
        report(case, everything[size])
        write_json(options.json, machine, everything)


def save_reward_models(case: PPOCase, folder: Path) -> None:
    """A whole one, and one that is an adapter."""
    from relax.lora import LoRASettings, add_lora

    case.save_reward_model(folder / MODEL)
    adapter = add_lora(case.classifier(), LoRASettings(LORA_R), task_type="SEQ_CLS")
    adapter.save_pretrained(folder / ADAPTER)
    case.tokenizer().save_pretrained(folder / ADAPTER)


def measure(case: PPOCase, roles: Roles, folder: str, threads: int) -> dict[str, float]:
    """MB by critic."""
    found = {}
    for critic in roles.critics:
        contender = Contender(f"{case.size}: {ROLES.index(roles)}: {critic}", threads)
        found[critic] = contender.measure(folder)["extra_mb"]
        contender.stop()
    return found


def be(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    size, roles, critic = options.contender.split(": ")
    turns, case = Turns(), FullCase(size, size=size, micro_batch=options.micro_batch)
    turns.report({"extra_mb": peak_of_training(case, ROLES[int(roles)], critic, Path(turns.wait()))})
    turns.wait()
    os._exit(0)


def peak_of_training(case: PPOCase, roles: Roles, critic: str, folder: Path) -> float:
    """In MB, over the libraries."""
    import peft  # noqa: F401  now, as it is no part of what is measured

    from relax.lora import LoRASettings, add_lora
    from trainers import GRPOTrainer, RLTrainer

    memory = PeakMemory()
    memory.start()
    model: Any = case.model()
    if roles.lora:
        model = add_lora(model, LoRASettings(LORA_R))
    settings = settings_of(case, roles) | {"rewards": [reward_of(roles, model, case, folder)]}
    if critic == NONE:
        GRPOTrainer(model, case.tokenizer(), num_generations=2, **settings).train()
    else:
        RLTrainer(model, case.tokenizer(), critic=critic, **settings).train()  # type: ignore[arg-type]
    return memory.extra_mb()


def settings_of(case: PPOCase, roles: Roles) -> dict[str, Any]:
    """Of either trainer: two iterations of one optimizer step."""
    return {
        "train_dataset": case.rows(),
        "kl_coef": case.kl_coef if roles.reference else 0.0,
        "batch_size": COMPLETIONS,
        "micro_batch_size": case.micro_batch,
        "num_iterations": 1,
        "max_new_tokens": case.new,
        "stop_token_ids": case.stop_ids,
        "learning_rate": LEARNING_RATE,
        "gradient_clip_val": 1.0,
        "max_steps": 2,
        "seed": SEED,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }


def reward_of(roles: Roles, policy: Any, case: PPOCase, folder: Path) -> Any:
    from relax.rewards.adapter_reward import AdapterReward
    from relax.rewards.reward_model import RewardModel

    if roles.reward == MODEL:
        return RewardModel(str(folder / MODEL))
    if roles.reward == ADAPTER:
        return AdapterReward(policy, case.tokenizer(), str(folder / ADAPTER))
    return first_character


def first_character(completions: Sequence[str], **_: Any) -> list[float]:
    return [ord(text[0]) / 1e4 for text in completions]


def report(case: PPOCase, measured: Sequence[dict[str, float]]) -> None:
    policy = sum(p.numel() * p.element_size() for p in case.model().parameters()) / MEGABYTE
    rows = []
    for roles, found in zip(ROLES, measured, strict=True):
        cells = [f"{found[c]:,.0f} ({found[c] / policy:.1f})" if c in found else "-" for c in (NONE, *CRITICS)]
        rows.append([str(roles), *cells])
    print_table([f"{case.size}, policy of {policy:,.1f} MB: peak MB", NONE, *CRITICS], rows)


if __name__ == "__main__":
    main()
