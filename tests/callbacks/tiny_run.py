"""A two-layer module with dropout, its resumable data, and one run of it: what the callbacks' tests train."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROWS, WIDTH = 24, 8


class Loader:
    """Batches of 2 rows in an order that depends on the epoch; it can go on in the middle of one."""

    def __init__(self, module: "Tiny") -> None:
        self.module, self.epoch, self.position = module, -1, 0

    def __len__(self) -> int:
        return self.module.batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = self.module.current_epoch
        skip = self.position if self.epoch == epoch and self.position < len(self) else 0
        self.epoch = epoch
        x, y = data()
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).view(-1, 2)
        for index in range(skip, len(self)):
            rows = order[index % len(order)]
            yield x[rows], y[rows]

    def state_dict(self) -> dict[str, int]:
        done = self.module.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return {"epoch": self.epoch, "position": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    return x, x.sum(1, keepdim=True)


class Tiny(L.LightningModule):
    def __init__(self, batches: int = 6, validates: bool = False) -> None:
        super().__init__()
        self.batches = batches
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.3), nn.Linear(16, 1))
        self.losses: list[tuple[int, float]] = []
        self.validates = validates

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append((self.global_step, float(loss.detach())))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> Loader:
        return Loader(self)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data()), batch_size=12) if self.validates else []


def trainer(*callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "max_epochs": 3,
    }
    saves = any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks)
    return L.Trainer(**defaults | {"enable_checkpointing": saves} | arguments, callbacks=list(callbacks))


def fit(*callbacks: L.Callback, module: Tiny | None = None, ckpt_path: Path | None = None, **arguments: Any) -> Tiny:
    """One run; the module knows its losses, and through ``.trainer`` the rest."""
    module = Tiny() if module is None else module
    trainer(*callbacks, **arguments).fit(module, ckpt_path=ckpt_path)
    return module


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]
