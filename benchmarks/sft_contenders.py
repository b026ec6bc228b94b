"""The contenders of ``benchmarks/sft.py``: the same model on the same rows, trained by ReLax, by hand, and by TRL.

All train in fp32 with fused AdamW at a constant rate, clip the gradient's norm at 1, take 16 rows a step in the same
order, and read the loss of every tenth step. The last of TRL's is TRL as it comes.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import PeakMemory, Turns, peak_mb
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from relax.data.batches import Batch, EpochBatches, Layout, collate_packed, collate_padded, epoch_steps
from relax.data.tokenized import Sample, TokenizedDataset

BATCH_SIZE = 16
SEED = 0
LEARNING_RATE = 1e-4
LOG_EVERY = 10
PROMPT_SHARE = 1 / 3
MODELS = {
    "tiny": {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4},
    "small": {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
}


def build_model(size: str) -> LlamaForCausalLM:
    """Fresh weights, the same for every contender."""
    torch.manual_seed(SEED)
    heads = {"num_attention_heads": MODELS[size]["hidden_size"] // (32 if size == "tiny" else 64)}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**MODELS[size], **heads, **ids, max_position_embeddings=512)).train()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """What a trainer asks for; the rows are tokenized already."""
    from tokenizers import Tokenizer, models

    vocabulary = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>")


def build_rows(count: int, vocabulary: int) -> TokenizedDataset:
    """Random tokens; log-normal lengths of mean 65, 95th percentile 147, at most 256; the first third is prompt."""
    rng = np.random.default_rng(SEED)
    lengths = np.clip(rng.lognormal(np.log(65) - 0.187, 0.612, count).round(), 6, 256).astype(int)
    samples = []
    for length in lengths:
        mask = np.arange(length) >= round(length * PROMPT_SHARE)
        samples.append(Sample.of(rng.integers(3, vocabulary, length), mask))
    return TokenizedDataset.from_samples(samples)


@dataclass
class Steps:
    """Counts optimizer steps, and lets only as many pass at a time as the parent process asks for."""

    turns: Turns

    def begin(self) -> None:
        """Wait for the first turn; call it right before training."""
        self.memory = PeakMemory()
        self.memory.start()
        self._wait()

    def done(self, tokens: int) -> None:
        """An optimizer step over ``tokens`` real tokens is complete."""
        self.tokens += tokens
        self.left -= 1
        if self.left:
            return
        self.turns.report(
            {
                "tokens": self.tokens,
                "seconds": time.perf_counter() - self.wall,
                "cpu_seconds": time.process_time() - self.cpu,
                "peak_mb": peak_mb(),
                "extra_mb": self.memory.extra_mb(),
            }
        )
        self._wait()

    def _wait(self) -> None:
        self.left, self.tokens = int(self.turns.wait()), 0
        self.wall, self.cpu = time.perf_counter(), time.process_time()


@dataclass
class Job:
    """What a contender is given."""

    size: str
    num_steps: int
    steps: Steps

    def rows(self) -> TokenizedDataset:
        return build_rows(self.num_steps * BATCH_SIZE, MODELS[self.size]["vocab_size"])

    def ordered_rows(self) -> Iterator[Sample]:
        """The rows in the order in which ReLax takes them."""
        rows = self.rows()
        for step in epoch_steps(rows.lengths, BATCH_SIZE, SEED, 0, group_by_length=False):
            yield from (rows[i] for i in step.tolist())


# ReLax


def train_relax(job: Job, layout: str, with_callbacks: bool = False) -> None:
    import lightning as L

    from callbacks import default_callbacks
    from trainers import SFTTrainer

    class Progress(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            job.steps.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
            job.steps.done(batch.num_tokens)

    with tempfile.TemporaryDirectory() as folder:
        usual = default_callbacks(folder, export=False, progress=False) if with_callbacks else []
        SFTTrainer(
            build_model(job.size),
            build_tokenizer(),
            train_dataset=job.rows(),
            batch_size=BATCH_SIZE,
            layout=layout,
            seed=SEED,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            gradient_clip_val=1.0,
            log_every_n_steps=LOG_EVERY,
            max_epochs=1,
            accelerator="cpu",
            enable_progress_bar=False,
            callbacks=[*usual, Progress()],
        ).train()


# By hand


def train_by_hand(job: Job) -> None:
    """What one writes without a library: the model's own forward, padded, full logits."""

    def loss_of(model: LlamaForCausalLM, samples: list[Sample]) -> Tensor:
        longest = max(len(s.input_ids) for s in samples)
        ids, labels = (np.full((len(samples), longest), fill, dtype=np.int64) for fill in (0, -100))
        for i, sample in enumerate(samples):
            length = len(sample.input_ids)
            ids[i, :length] = sample.input_ids
            labels[i, :length] = np.where(sample.loss_mask, sample.input_ids, -100)
        input_ids, targets = torch.from_numpy(ids), torch.from_numpy(labels)
        logits = model(input_ids=input_ids, attention_mask=(input_ids != 0).long(), use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)

    rows = [*job.ordered_rows()]
    batches = [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]
    _loop(job, build_model(job.size), batches, loss_of, lambda samples: sum(len(s.input_ids) for s in samples))


def train_by_hand_with_our_parts(job: Job, packed: bool) -> None:
    """The same loop on ReLax's batches, attention and loss: what is left to gain from ReLax without its trainer."""
    from relax import causal_lm
    from relax.losses import weighted_logprob_sum

    def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
        hidden, head = causal_lm.hidden_states(model, batch), causal_lm.language_head(model)
        return -weighted_logprob_sum(hidden, head, batch.targets, batch.weights / batch.step_targets)[0]

    model, rows = build_model(job.size), job.rows()
    if packed:
        assert causal_lm.isolate_documents(model)
    steps = epoch_steps(rows.lengths, BATCH_SIZE, SEED, 0, group_by_length=False)
    collate = collate_packed if packed else collate_padded
    _loop(job, model, EpochBatches(rows, steps, Layout.of(BATCH_SIZE, 1, None, None), 0, collate), loss_of, _num_tokens)


def _num_tokens(batch: Batch) -> int:
    return batch.num_tokens


def _loop(
    job: Job, model: LlamaForCausalLM, batches: Any, loss_of: Callable[..., Tensor], tokens_of: Callable[[Any], int]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    losses = []
    job.steps.begin()
    for step in range(len(batches)):
        batch = batches[step]
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            losses.append(loss.item())
        del loss
        job.steps.done(tokens_of(batch))


# TRL

FP32 = {"bf16": False, "gradient_checkpointing": False}


def train_trl(job: Job, **settings: Any) -> None:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    tokens: list[int] = []  # of each batch, in the order in which they are built

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            job.steps.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.steps.done(tokens[state.global_step - 1])

    columns = [
        {"input_ids": s.input_ids.tolist(), "completion_mask": s.loss_mask.astype(int).tolist()}
        for s in job.ordered_rows()
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "max_steps": job.num_steps,
            "max_length": 256,
            "completion_only_loss": True,
            "logging_steps": LOG_EVERY,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        trainer = trl.SFTTrainer(
            build_model(job.size),
            args=trl.SFTConfig(**options | settings),
            train_dataset=Dataset.from_list(columns),
            processing_class=build_tokenizer(),
            callbacks=[Progress()],
        )
        trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(trainer.train_dataset)
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            tokens.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()


CONTENDERS: dict[str, Callable[[Job], None]] = {
    "ReLax, packed": partial(train_relax, layout="packed"),
    "ReLax, packed, default callbacks": partial(train_relax, layout="packed", with_callbacks=True),
    "ReLax, padded": partial(train_relax, layout="padded"),
    "hand-written, ReLax's packed batches and loss": partial(train_by_hand_with_our_parts, packed=True),
    "hand-written, ReLax's padded batches and loss": partial(train_by_hand_with_our_parts, packed=False),
    "hand-written, padded, full logits": train_by_hand,
    "TRL, padded": partial(train_trl, **FP32),
    "TRL, padding-free": partial(train_trl, **FP32, padding_free=True, max_length=None),
    "TRL, packed (bfd)": partial(train_trl, **FP32, packing=True, per_device_train_batch_size=BATCH_SIZE // 4),
    "TRL as it comes (bf16, checkpointing), padded": train_trl,
}


def contend(name: str, size: str, num_steps: int) -> None:
    """Be this contender, until the parent process has seen enough."""
    warnings.simplefilter("ignore")
    CONTENDERS[name](Job(size, num_steps, Steps(Turns())))
    sys.exit(f"{name} ran out of steps")
