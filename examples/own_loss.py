"""A loss of your own: a subclass of ``Trainer`` with ``compute_loss``, here cross-entropy with a confidence penalty.

Everything else is inherited: optimizers, batch layout, several devices, exact resume, LoRA, checkpoints, export. Run it
with ``python examples/own_loss.py``.

Legend: K targets of a micro-batch, D hidden size.
"""

from typing import Any

from torch import Tensor, nn

from relax.causal_lm import hidden_states, language_head
from relax.data import TokenizedDataset, tokenize_rows
from relax.data.batching.batches import Batch
from relax.errors import UserError
from relax.losses import token_logprobs
from relax.tasks import TASKS
from trainers import Trainer


class ConfidencePenaltyTrainer(Trainer):
    """mean over tokens of -log p(y) - beta H(p): a model that is less sure of itself (arXiv 1701.06548).

    Args:
        model: as for ``Trainer``; so are the tokenizer and all further keywords.
        train_dataset: tokenized rows, see ``tokenize_rows``.
        beta: weight of the entropy.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, train_dataset: TokenizedDataset, beta: float = 0.1, **settings: Any
    ) -> None:
        if beta < 0:
            raise UserError(f"beta must be at least 0, got {beta}")
        super().__init__(model, tokenizer, train_dataset=train_dataset, config={"beta": beta}, **settings)
        self.beta = beta

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, as its share of the whole optimizer step."""
        hidden = hidden_states(self.model, batch)  # [K, D], the states that predict the targets
        head = language_head(self.model)
        tokens = token_logprobs(hidden, head, batch.targets, compiled=self.compiles_loss)  # never K x V at once
        # Lightning takes the mean over micro-batches and ranks; with this scale it is the mean over all targets.
        scale = batch.step_micro_batches / batch.step_weight
        nll, entropy = (scale * (batch.weights * x).sum() for x in (-tokens.logprobs, tokens.entropy))
        return nll - self.beta * entropy, {"nll": nll.detach(), "entropy": entropy.detach()}

    def validation_figures(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Perplexity without the penalty."""
        return means | {"perplexity": means["nll"].exp()}


def main() -> None:
    """Train the built-in task with and without the penalty."""
    task, tokenizer = TASKS["sorting"], TASKS["sorting"].build_tokenizer()
    train_data = tokenize_rows(task.train_rows(4000), tokenizer)
    held_out = tokenize_rows(task.train_rows(200, seed=1), tokenizer)
    for beta in (0.0, 0.5):
        trainer = ConfidencePenaltyTrainer(
            task.build_model(),
            tokenizer,
            train_dataset=train_data,
            val_dataset=held_out,
            beta=beta,
            learning_rate=5e-3,
            batch_size=64,
            max_epochs=1,
            enable_progress_bar=False,
        )
        figures = trainer.train().trainer.callback_metrics
        print(f"beta {beta}: entropy {figures['val/entropy']:.2f} nats, perplexity {figures['val/perplexity']:.2f}")


if __name__ == "__main__":
    main()
