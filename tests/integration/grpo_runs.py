"""Tiny on-policy runs that the tests of resuming and of two processes share, what they record, and ways to kill them.

Those here are by GRPO; PPO's, see ``ppo_runs``, differ in how the trainer is built.
"""

import hashlib
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from conftest import build_llama

from callbacks import Checkpoint, MetricsFile
from relax import causal_lm
from relax.experience import Experience
from relax.lora import LoRASettings, add_lora
from relax.tasks.sorting import Sorting
from trainers import GRPOTrainer
from trainers.on_policy import OnPolicyTrainer

ITERATION = 4
"""Optimizer steps of an iteration."""
SETTINGS: dict[str, Any] = {
    **{"batch_size": 16, "num_generations": 4, "steps_per_generation": 2, "num_iterations": 2, "micro_batch_size": 4},
    **{"max_new_tokens": 6, "learning_rate": 1e-2, "schedule": "constant", "gradient_clip_val": 1.0, "max_steps": 10},
    **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False},
}


def seven(completion: str) -> float:
    """Coarse, so that some groups are without variance."""
    return float("7" in completion[:3])


def fine(completion: str) -> float:
    """Hardly ever the same for two completions."""
    return len(completion) + sum(map(int, filter(str.isdigit, completion))) / 100


def build(
    *callbacks: L.Callback,
    kind: type[OnPolicyTrainer] = GRPOTrainer,
    prompts: int = 40,
    lora: bool = False,
    score: Callable[..., float] = seven,
    **settings: Any,
) -> Any:
    """A trainer with a policy of random weights, always the same, but with ``start``."""
    model: Any = build_llama(attention_dropout=settings.pop("dropout", 0.0))
    model.model.embed_tokens.weight.data += settings.pop("start", 0)
    if lora:
        torch.manual_seed(5)
        model = add_lora(model, LoRASettings(r=2, dropout=settings.pop("lora_dropout", 0.2)))
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero at the start: the adapter would do nothing in the first rollout
                torch.nn.init.normal_(weight, std=0.1)
    task = Sorting()
    arguments: dict[str, Any] = {"train_dataset": task.prompt_rows(prompts)}
    arguments |= {"rewards": {"class_path": score, "name": "seven"}} | SETTINGS | settings
    return kind(model, task.build_tokenizer(), callbacks=list(callbacks), **arguments)


def digest(experience: Experience) -> str:
    """Of every number that is known of an iteration."""
    found = hashlib.blake2b(repr((experience.prompts, experience.numbers)).encode(), digest_size=8)
    columns = {"ids": experience.ids, "lengths": experience.lengths} | experience.tokens | experience.completions
    for name in sorted(columns):
        found.update(name.encode() + columns[name].numpy().tobytes())
    return found.hexdigest()


class Diary(L.Callback):
    """What every micro-batch was computed from, written at once: it survives kill -9."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        place = {"step": trainer.global_step, "micro_batch": batch_idx}
        known = {"rows": batch.rows, "experience": digest(module.experience), "kl_coef": module.kl_coef}
        known["halted"] = module.halted
        with self.path.with_suffix(f".{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(place | known) + "\n")


def kill(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)


class KillWhileSampling(L.Callback):
    """kill -9, or another signal, when some tokens of an iteration's completions are written."""

    def __init__(self, iteration: int, signum: int = signal.SIGKILL) -> None:
        self.iteration, self.signum, self.seen = iteration, signum, 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        def count(*_: Any) -> None:
            self.seen += not torch.is_grad_enabled() and trainer.current_epoch == self.iteration
            if self.seen == 4:
                kill(self.signum)

        self.watched(module).register_forward_hook(count)

    def watched(self, module: Any) -> torch.nn.Module:
        return causal_lm.base_model(module.model)


class KillWhileScoring(L.Callback):
    """kill -9 when some completions of an iteration are scored."""

    def __init__(self, iteration: int) -> None:
        self.iteration, self.seen = iteration, 0

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self.trainer = trainer

    def score(self, completion: str) -> float:
        self.seen += self.trainer.current_epoch == self.iteration
        if self.seen == 5:
            kill()
        return seven(completion)


class KillAtTheEnd(L.Callback):
    """kill -9 when the last step of an iteration is taken, before it is saved, or afterwards."""

    def __init__(self, iteration: int, saved: bool) -> None:
        self.iteration, self.saved = iteration, saved

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if not self.saved and trainer.is_last_batch and trainer.current_epoch == self.iteration:
            kill()

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if self.saved and trainer.current_epoch == self.iteration + 1:
            kill()


class KillWhileSaving(L.Callback):
    """kill -9 when half of a checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.global_step == self.step:
            torch.save = _save_half


def _save_half(checkpoint: Any, file: Any) -> None:
    whole = io.BytesIO()
    torch.serialization.save(checkpoint, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    kill()


def run(folder: Path, *callbacks: L.Callback, build: Callable[..., Any] = build, **settings: Any) -> Any:
    """With a diary, figures, and a checkpoint of every other step."""
    folder.mkdir(exist_ok=True, parents=True)
    watchers = [Diary(folder / "diary"), *callbacks, MetricsFile(folder / "metrics.jsonl")]
    watchers += [Checkpoint(folder / "checkpoints", every_n_steps=2, keep=99)]
    return build(*watchers, output_dir=folder, **settings).train()


def diary(folder: Path, rank: int = 0) -> dict[str, set[str]]:
    """What was written of every micro-batch: one thing, however often it was computed."""
    found: dict[str, set[str]] = {}
    for line in (folder / f"diary.{rank}").read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(f"{entry['step']}.{entry['micro_batch']}", set()).add(line)
    return found


def history(folder: Path) -> list[dict[str, float]]:
    """Every logged step, without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def state(folder: Path, step: int) -> list[Any]:
    """Weights, moments and the rest of what a run goes on with, as leaves."""
    saved = torch.load(folder / f"checkpoints/step={step:08d}.ckpt", weights_only=True)
    saved["rollouts"].pop("figures")
    names = {"state_dict", "optimizer_states", "lr_schedulers", "rollouts", "ppo"}
    kept = {name: saved[name] for name in sorted(names & saved.keys())}
    return [x.tolist() if isinstance(x, torch.Tensor) else x for x in torch.utils._pytree.tree_leaves(kept)]
