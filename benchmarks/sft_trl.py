"""TRL's SFTTrainer as a contender of ``benchmarks/sft.py``."""

import tempfile
from functools import partial
from typing import Any, Literal

from sft_job import BATCH_SIZE, LEARNING_RATE, LOG_EVERY, MAX_LENGTH, PACKED_BATCH_SIZE, Job

FP32 = {"bf16": False, "gradient_checkpointing": False}
TRLLayout = Literal["padded", "grouped", "padding-free", "packed", "as it comes"]
LAYOUTS: dict[TRLLayout, dict[str, Any]] = {
    "padded": FP32,
    "grouped": FP32,
    "padding-free": FP32 | {"padding_free": True, "max_length": None},
    "packed": FP32 | {"packing": True, "per_device_train_batch_size": PACKED_BATCH_SIZE},
    "as it comes": {},
}


def train_trl(job: Job, layout: TRLLayout) -> None:
    """The same rows in the same order: TRL keeps the order of a data set that is read sequentially."""
    import trl
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    tokens: list[int] = []  # of each batch, in the order in which they are built

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            job.steps.begin(partial(job.held_out_loss, model))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.steps.done(tokens[state.global_step - 1])

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            job.model(),
            args=trl.SFTConfig(**_settings(job, folder) | LAYOUTS[layout]),
            train_dataset=Dataset.from_list(_rows(job, layout == "grouped")),
            processing_class=job.tokenizer(),
            callbacks=[Progress()],
        )
        trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            tokens.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()


def _rows(job: Job, group_by_length: bool) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": sample.input_ids.tolist(), "completion_mask": sample.loss_mask.astype(int).tolist()}
        for sample in job.ordered_rows(group_by_length)
    ]


def _settings(job: Job, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_steps": job.num_steps,
        "max_length": MAX_LENGTH,
        "completion_only_loss": True,
        "logging_steps": LOG_EVERY,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
