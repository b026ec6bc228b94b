"""Two callbacks of your own: one watches (prints what the model answers), one steers (stops after so many tokens).

Each works in any run of ReLax, by its dotted path too: ``python run_sft.py
--callbacks=examples.own_callback.TokenBudget``. Run the file itself with ``python examples/own_callback.py``.
"""

from typing import Any

import lightning as L

from relax.data.batching.batches import Batch
from relax.modes import evaluating
from relax.ranks import over_ranks
from relax.tasks import TASKS
from relax.tasks.grading import greedy_completions
from trainers import SFTTrainer


class Samples(L.Callback):
    """Prints the greedy answers to ``prompts`` every so many optimizer steps.

    It may draw random numbers as it likes: the noise of every training step is seeded anew.
    """

    def __init__(self, prompts: list[str], every_n_steps: int = 50, max_new_tokens: int = 20) -> None:
        self.prompts, self.every_n_steps, self.max_new_tokens = prompts, every_n_steps, max_new_tokens

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Lightning's hook, after every micro-batch."""
        due = step_completed(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0
        if not due or not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        with evaluating(model):
            answers = greedy_completions(model, pl_module.tokenizer, self.prompts, self.max_new_tokens)
        for prompt, answer in zip(self.prompts, answers, strict=True):
            print(f"step {trainer.global_step}: {prompt} {'(did not end)' if answer is None else answer}")


class TokenBudget(L.Callback):
    """Ends the run once it has seen ``tokens`` tokens, on all devices together; a resumed run goes on counting."""

    def __init__(self, tokens: int = 100_000) -> None:
        self.tokens, self.seen, self.seen_here = tokens, 0.0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Lightning's hook, after every micro-batch."""
        self.seen_here += batch.num_tokens
        if not step_completed(trainer, batch_idx):
            return  # a run can be continued exactly only where an optimizer step is complete
        self.seen += over_ranks(trainer, self.seen_here, "sum")
        self.seen_here = 0
        pl_module.log("tokens_seen", self.seen, rank_zero_only=True)
        if self.seen >= self.tokens:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What a resumed run finds."""
        self.seen = state_dict["seen"]


def step_completed(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def main() -> None:
    """A short run of the built-in task with both."""
    task = TASKS["sorting"]
    trainer = SFTTrainer(
        task.build_model(),
        task.build_tokenizer(),
        train_dataset=task.train_rows(4000),
        learning_rate=5e-3,
        batch_size=64,
        micro_batch_size=32,
        max_epochs=3,
        enable_progress_bar=False,
        callbacks=[Samples(["52713>", "31>"], every_n_steps=25), TokenBudget(80_000)],
    )
    trainer.train()
    print(f"stopped after {trainer.trainer.global_step} of {3 * 63} steps: the tokens are spent")


if __name__ == "__main__":
    main()
