"""The contenders of ``benchmarks/tokenization.py``: from rows in a JSONL file to a data set that batches are made of.

Measured are reading the file and everything a trainer does with the rows before its first batch: applying the chat
template, tokenizing, the loss mask, truncation, dropping rows without a target. Not measured: imports, the tokenizer.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chat_rows import UNMARKED_CHATML
from side_by_side import PeakMemory, take_turns

MAX_LENGTH = 1024
Turn = dict[str, float]


@dataclass(frozen=True)
class Job:
    """Where ``rows.jsonl`` and the tokenizer lie, and an empty folder, or that of the run before, for the cache."""

    folder: Path
    cache: Path


def tokenize_relax(job: Job, workers: int, marked: bool = True) -> Turn:
    from transformers import AutoTokenizer

    from relax.data.sources.loading import load_rows
    from relax.data.tokens.encoding import EncodingOptions
    from relax.data.tokens.tokenization import tokenize_rows

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    if not marked:
        tokenizer.chat_template = UNMARKED_CHATML
    options = EncodingOptions(max_length=MAX_LENGTH)
    clock = Clock()
    rows = load_rows(str(job.folder / "rows.jsonl"))
    data = tokenize_rows(rows, tokenizer, options, workers=workers, cache=job.cache)
    return clock.stop() | {"rows": len(data), "tokens": data.report.tokens, "trained": data.report.trained_tokens}


def tokenize_trl(job: Job, processes: int | None) -> Turn:
    os.environ["HF_DATASETS_CACHE"] = str(job.cache)  # read when `datasets` is imported
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    class Timed(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: object, **kwargs: object) -> datasets.Dataset:
            before = time.perf_counter()
            prepared = super()._prepare_dataset(*args, **kwargs)
            self.preparation_seconds = time.perf_counter() - before
            return prepared

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    config = SFTConfig(
        output_dir=str(job.cache / "run"),
        max_length=MAX_LENGTH,
        assistant_only_loss=is_chat(job),
        dataset_num_proc=processes,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    clock = Clock()
    rows = datasets.load_dataset("json", data_files=str(job.folder / "rows.jsonl"), split="train")
    loading = time.perf_counter() - clock.wall
    trainer = Timed(model, args=config, train_dataset=rows, processing_class=tokenizer)
    turn = clock.stop() | {"seconds": loading + trainer.preparation_seconds}
    return turn | counted(trainer.train_dataset)


def is_chat(job: Job) -> bool:
    with (job.folder / "rows.jsonl").open() as file:
        return file.readline().startswith('{"messages"')


def counted(dataset: object) -> dict[str, float]:
    """Rows, tokens and trained tokens of TRL's data set: the first token of a row is nobody's target."""
    import pyarrow.compute as pc

    table = dataset.data.table  # type: ignore[attr-defined]
    tokens = pc.sum(pc.list_value_length(table["input_ids"])).as_py()
    trained = pc.sum(pc.not_equal(pc.list_flatten(table["labels"]), -100)).as_py()
    first = pc.sum(pc.not_equal(pc.list_element(table["labels"], 0), -100)).as_py()
    return {"rows": len(table), "tokens": tokens, "trained": trained - first}


class Clock:
    """Wall and CPU seconds and extra peak memory since it was made; child processes count for the CPU alone."""

    def __init__(self) -> None:
        self.peak = PeakMemory()
        self.peak.start()
        self.wall, self.cpu = time.perf_counter(), sum(os.times()[:4])

    def stop(self) -> Turn:
        seconds = time.perf_counter() - self.wall
        return {"seconds": seconds, "cpu_seconds": sum(os.times()[:4]) - self.cpu, "extra_mb": self.peak.extra_mb()}


RELAX, RELAX_TWO = "ReLax, one process", "ReLax, two workers"
TRL, TRL_TWO = "TRL, one process", "TRL, two processes"
CONTENDERS: dict[str, Callable[[Job], Turn]] = {
    RELAX: partial(tokenize_relax, workers=0),
    RELAX_TWO: partial(tokenize_relax, workers=2),
    "ReLax, one process, template without markers": partial(tokenize_relax, workers=0, marked=False),
    TRL: partial(tokenize_trl, processes=None),
    TRL_TWO: partial(tokenize_trl, processes=2),
}


def contend(name: str, folder: Path) -> None:
    """Be this contender: a turn's task is the folder of its cache."""
    take_turns(lambda cache: CONTENDERS[name](Job(folder, Path(cache))))
