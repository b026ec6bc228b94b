"""GRPO from Python with two rewards and two callbacks of your own, on the built-in task and the model it ships with.

It needs no download. Run it with ``python examples/own_reward.py``; some seconds on a CPU. The functions work by their
dotted paths too: ``python run_grpo.py --rewards=examples.own_reward.solved,examples.own_reward.in_place:0.2``.
"""

from collections.abc import Mapping

import lightning as L

from callbacks import Evaluate
from relax.experience import Experience
from relax.lightning_loop import step_completed
from relax.models import load_model, load_tokenizer
from relax.rewards import build_rewards
from relax.tasks import TASKS
from trainers import GRPOTrainer


def solved(completion: str, answer: str, truncated: bool) -> float:
    """1.0 for the answer and nothing else; ``answer`` is a column of the rows, ``truncated`` comes from the rollout."""
    return float(completion == answer and not truncated)


def in_place(completion: str, answer: str) -> float:
    """The share of digits that stand where they belong: something to climb where nothing is solved yet."""
    return sum(a == b for a, b in zip(completion, answer, strict=False)) / len(answer)


class HardestPrompt(L.Callback):
    """Prints, every so many optimizer steps, the prompt of the current iteration that is solved least often."""

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Lightning's hook, after every micro-batch."""
        due = step_completed(trainer) and trainer.global_step % self.every_n_steps == 0
        if not due or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, GRPOTrainer)
        experience = pl_module.experience
        assert experience is not None
        rates = solve_rates(experience)
        hardest = min(range(len(rates)), key=rates.__getitem__)
        prompt = pl_module.tokenizer.decode(experience.prompts[hardest])
        print(f"step {trainer.global_step}: {prompt} is solved {rates[hardest]:.0%} of the time")


class StopWhenSolved(L.Callback):
    """Ends the run once the held-out accuracy that `Evaluate` measures is high enough."""

    def __init__(self, accuracy: float) -> None:
        self.accuracy = accuracy

    def on_evaluation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, figures: Mapping[str, float], seconds: float
    ) -> None:
        """`Evaluate`'s hook, on every rank, with the same figures on each."""
        print(f"step {trainer.global_step}: {figures['val/accuracy']:.1%} of held-out prompts answered right")
        if figures["val/accuracy"] >= self.accuracy:
            trainer.should_stop = True


def solve_rates(experience: Experience) -> list[float]:
    """The share of each prompt's completions that are solved, one a prompt."""
    scores = experience.completions["reward/solved"]
    rates: list[float] = scores.view(-1, experience.num_samples).mean(1).tolist()
    return rates


def main() -> None:
    """Train until 98 % of the held-out prompts are answered right."""
    task = TASKS["sorting"]
    folder = str(task.policy_folder)
    rewards = build_rewards([solved, (in_place, 0.2)])  # a pair is a function and its weight
    trainer = GRPOTrainer(
        load_model(folder),
        load_tokenizer(folder),
        train_dataset=task.prompt_rows(2000),
        rewards=rewards,
        learning_rate=3e-4,
        batch_size=256,
        num_generations=16,
        max_new_tokens=9,
        max_steps=100,
        gradient_clip_val=1.0,
        accelerator="auto",
        enable_progress_bar=False,
        callbacks=[
            Evaluate(task.eval_rows(200), rewards, every_n_steps=10, correct="solved"),
            HardestPrompt(every_n_steps=10),
            StopWhenSolved(accuracy=0.98),
        ],
    )
    reached = trainer.train().trainer
    print(f"stopped after {reached.global_step} steps, mean reward {reached.callback_metrics['train/reward']:.2f}")


if __name__ == "__main__":
    main()
