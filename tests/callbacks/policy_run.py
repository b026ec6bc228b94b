"""A tiny module that looks to callbacks as an on-policy trainer does: iterations of 6 batches, a KL, a reference."""

import copy
from typing import Any

import torch
from tiny_run import Tiny
from torch import nn

from relax.experience import Experience

COMPLETIONS = 4


def experience(kl: float | None) -> Experience:
    """One prompt and ``COMPLETIONS`` answers of 2 tokens, on which policy and reference differ by ``kl``."""
    tokens = {"logprobs": torch.full((2 * COMPLETIONS,), -1.0, dtype=torch.float64)}
    if kl is not None:
        tokens["ref_logprobs"] = tokens["logprobs"] - kl / 2
    ids, lengths = torch.zeros(2 * COMPLETIONS, dtype=torch.int64), torch.full((COMPLETIONS,), 2)
    return Experience([[1]], [0], COMPLETIONS, ids, lengths, tokens, {})


class Policy(Tiny):
    """Its KL is the squared distance that ``model`` has moved, and the coefficient acts on the weights."""

    strict_loading = False

    def __init__(self, kl_coef: float = 0.5) -> None:
        super().__init__()
        self.model, self.kl_coef = self.net, kl_coef
        # Not a submodule, as in a ReLax trainer.
        self._reference: tuple[nn.Module | None] = (copy.deepcopy(self.model).requires_grad_(False),)
        self.experience: Experience | None = None
        self.coefs: list[tuple[int, float]] = []
        self.policies: list[list[torch.Tensor]] = []  # after every optimizer step

    @property
    def reference(self) -> nn.Module | None:
        return self._reference[0]

    def distance(self) -> torch.Tensor:
        assert self.reference is not None
        pairs = zip(self.model.parameters(), self.reference.parameters(), strict=True)
        return sum((p - q).square().sum() for p, q in pairs)  # type: ignore[return-value]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.experience = experience(float(self.distance().detach()))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.coefs.append((self.global_step, self.kl_coef))
        return super().training_step(batch, batch_idx) + self.kl_coef * self.distance()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step > len(self.policies):
            self.policies.append([p.detach().clone() for p in self.model.parameters()])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As a ReLax trainer: what is trained, and the experience; neither the coefficient nor the reference."""
        trained = {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["experience"] = None if self.experience is None else self.experience.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["experience"] is not None:
            self.experience = Experience.from_state(checkpoint["experience"])
