"""Two processes, of which the second meets a row that is not a number: what each says and whether it was touched."""

from typing import Any

import torch
from test_nan_guard import Knowing, RowBatch
from tiny_run import data, trainer, weights
from torch.utils.data import DataLoader

from callbacks import NaNGuard
from relax.errors import NonFiniteLoss


class OneRankPoisoned(Knowing):
    def train_dataloader(self) -> Any:
        x, y = data()
        y[7] = float("nan") if self.global_rank == 1 else 0.0
        batches = [RowBatch(x[i : i + 2], y[i : i + 2], [i, i + 1]) for i in (0, 2, 6, 8)]
        return DataLoader(batches, batch_size=None)


if __name__ == "__main__":
    module = OneRankPoisoned()
    try:
        trainer(NaNGuard(), strategy="ddp", devices=2, use_distributed_sampler=False).fit(module)
    except NonFiniteLoss as error:
        untouched = all(map(torch.equal, module.before, weights(module)))
        print(f"{error}; weights untouched: {untouched}", flush=True)
