"""The contenders of ``benchmarks/sft.py``: the same model on the same rows, trained by ReLax, by hand, and by TRL.

All train in fp32 with fused AdamW at a constant rate, clip the gradient's norm at 1, take 16 rows a step in the same
order, and look at the loss of every tenth step. "Grouped" is ReLax's order by length, for both. Best fit packs rows
into sequences of 256 tokens and takes 4 of them a step, which hold about 16 rows. Only TRL as it comes has its own
precision, and checkpointing.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sft_job import BATCH_SIZE, LEARNING_RATE, LOG_EVERY, MAX_LENGTH, PACKED_BATCH_SIZE, SEED, Job, Steps
from sft_trl import train_trl
from side_by_side import Turns
from torch import Tensor
from transformers import LlamaForCausalLM

from relax.data.batching.batches import Batch, collate_packed, collate_padded
from relax.data.batching.epoch import BatchBuilder, PlannedBatches
from relax.data.batching.layout import Layout
from relax.data.tokens.tokenized import Sample


def train_relax(job: Job, with_callbacks: bool = False, **settings: Any) -> None:
    import lightning as L

    from callbacks import default_callbacks
    from trainers import SFTTrainer

    class Progress(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            job.steps.begin(partial(job.held_out_loss, module.model))

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
            job.steps.done(batch.num_tokens)

    with tempfile.TemporaryDirectory() as folder:
        usual = default_callbacks(folder, export=False, progress=False) if with_callbacks else []
        SFTTrainer(
            job.model(),
            job.tokenizer(),
            train_dataset=job.rows(),
            seed=SEED,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            gradient_clip_val=1.0,
            log_every_n_steps=LOG_EVERY,
            max_epochs=1,
            accelerator="cpu",
            enable_progress_bar=False,
            callbacks=[*usual, Progress()],
            **{"batch_size": BATCH_SIZE} | settings,
        ).train()


def train_by_hand(job: Job) -> None:
    """What one writes without a library: the model's own forward, padded, full logits."""
    rows = [*job.ordered_rows()]
    batches = [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]
    _loop(job, job.model(), batches, _loss_by_hand, lambda samples: sum(len(s.input_ids) for s in samples))


def _loss_by_hand(model: LlamaForCausalLM, samples: list[Sample]) -> Tensor:
    longest = max(len(s.input_ids) for s in samples)
    ids, labels = (np.full((len(samples), longest), fill, dtype=np.int64) for fill in (0, -100))
    for i, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids[i, :length] = sample.input_ids
        labels[i, :length] = np.where(sample.loss_mask, sample.input_ids, -100)
    input_ids, targets = torch.from_numpy(ids), torch.from_numpy(labels)
    logits = model(input_ids=input_ids, attention_mask=(input_ids != 0).long(), use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)


def train_by_hand_with_our_parts(job: Job, layout: Literal["packed", "padded"]) -> None:
    """The same loop on ReLax's batches, attention and loss: what ReLax's parts give without its trainer."""
    from relax import causal_lm
    from relax.losses import weighted_loss_sum

    def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
        hidden, head = causal_lm.hidden_states(model, batch), causal_lm.language_head(model)
        return weighted_loss_sum(hidden, head, batch.targets, batch.weights / batch.step_weight)[0]

    def tokens_of(batch: Batch) -> int:
        return batch.num_tokens

    model = job.model()
    if layout == "packed":
        causal_lm.isolate_documents(model)
    builder = BatchBuilder(
        Layout.of(BATCH_SIZE, 1, None, None), 0, collate_packed if layout == "packed" else collate_padded
    )
    _loop(job, model, PlannedBatches(job.plan(job.rows()), builder).epoch(0), loss_of, tokens_of)


def _loop(
    job: Job, model: LlamaForCausalLM, batches: Any, loss_of: Callable[..., Tensor], tokens_of: Callable[[Any], int]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    losses = []
    job.steps.begin(partial(job.held_out_loss, model))
    for step in range(len(batches)):
        batch = batches[step]
        loss = loss_of(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            losses.append(loss.item())
        del loss
        job.steps.done(tokens_of(batch))


CONTENDERS: dict[str, Callable[[Job], None]] = {
    "ReLax, packed": partial(train_relax, layout="packed"),
    "ReLax, packed, default callbacks": partial(train_relax, layout="packed", with_callbacks=True),
    "ReLax, packed into 256 (best fit)": partial(
        train_relax, layout="packed", packing_length=MAX_LENGTH, batch_size=PACKED_BATCH_SIZE
    ),
    "ReLax, padded": partial(train_relax, layout="padded"),
    "ReLax, padded, grouped": partial(train_relax, layout="padded", group_by_length=True),
    "hand-written, ReLax's packed batches and loss": partial(train_by_hand_with_our_parts, layout="packed"),
    "hand-written, ReLax's padded batches and loss": partial(train_by_hand_with_our_parts, layout="padded"),
    "hand-written, padded, full logits": train_by_hand,
    "TRL, padded": partial(train_trl, layout="padded"),
    "TRL, padded, grouped": partial(train_trl, layout="grouped"),
    "TRL, padding-free": partial(train_trl, layout="padding-free"),
    "TRL, packed (bfd)": partial(train_trl, layout="packed"),
    "TRL as it comes (bf16, checkpointing), padded": partial(train_trl, layout="as it comes"),
}


def contend(name: str, size: str, num_steps: int) -> None:
    """Be this contender, until the parent process has seen enough."""
    warnings.simplefilter("ignore")
    CONTENDERS[name](Job(size, num_steps, Steps(Turns())))
    sys.exit(f"{name} ran out of steps")
