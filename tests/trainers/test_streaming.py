"""Training on rows that are read as it goes: every row once an epoch, and a resumed run goes on bit for bit."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks import Checkpoint
from relax.data.batching.streaming import SampleStream
from relax.data.sources.streams import open_stream
from relax.data.tokens.encoding import EncodingOptions
from relax.errors import TrainingStopped, UserError
from relax.tasks.sorting import Sorting
from trainers import SFTTrainer

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 8, "schedule": "constant"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in Sorting().train_rows(60)))
    return path


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []
        self.rows: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.rows.append(batch.rows if batch.num_tokens else [])

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.values.append(float(outputs["loss"]))


def fit(model: Any, tokenizer: Any, file: Path, **settings: Any) -> tuple[Losses, SFTTrainer]:
    log = Losses()
    callbacks = [log, *settings.pop("callbacks", [])]
    options = QUIET | {"shuffle_buffer": 16, "max_epochs": 2, "learning_rate": 1e-2} | settings
    trainer = SFTTrainer(model, tokenizer, train_dataset=open_stream(str(file)), callbacks=callbacks, **options).train()
    return log, trainer


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3, "batch_size": 9, "data_workers": 1}])
def test_every_row_is_trained_on_once_an_epoch(
    settings: dict, file: Path, make_llama: Callable, tokenizer: Any
) -> None:
    log, trainer = fit(make_llama(), tokenizer, file, **settings)
    batch_size = settings.get("batch_size", 8)
    steps = -(-60 // batch_size)
    assert trainer.trainer.global_step == 2 * steps
    half = len(log.rows) // 2
    first, second = ([row for rows in part for row in rows] for part in (log.rows[:half], log.rows[half:]))
    assert sorted(first) == sorted(second) == [*range(1, 61)]
    assert first != second


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3, "batch_size": 9, "data_workers": 1}])
@pytest.mark.parametrize("stop", [3, 7, 8, 11])  # within the first epoch, at its end, within the second
def test_a_resumed_stream_goes_on_bit_for_bit(
    stop: int, settings: dict, file: Path, tmp_path: Path, make_llama: Callable, tokenizer: Any
) -> None:
    # dropout: the noise must be the same too
    whole, uninterrupted = fit(make_llama(attention_dropout=0.1), tokenizer, file, **settings)
    folder = tmp_path / "checkpoints"
    part, _ = fit(
        make_llama(attention_dropout=0.1), tokenizer, file, max_steps=stop, callbacks=[Checkpoint(folder)], **settings
    )
    rest, resumed = fit(
        make_llama(attention_dropout=0.1), tokenizer, file, resume=str(next(folder.glob("*.ckpt"))), **settings
    )
    assert part.values + rest.values == whole.values
    assert part.rows + rest.rows == whole.rows
    for found, expected in zip(resumed.model.parameters(), uninterrupted.model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_block_is_shuffled_by_seed_and_epoch_and_read_on_from_anywhere(file: Path, tokenizer: Any) -> None:
    def numbers(epoch: int, skip: int = 0, seed: int = 0, buffer: int = 16) -> list[int]:
        stream = SampleStream(
            open_stream(str(file)), tokenizer, EncodingOptions(), "rows", seed=seed, shuffle_buffer=buffer
        )
        return [read.number for read in stream.read(epoch, skip)]

    whole = numbers(0)
    assert [sorted(whole[i : i + 16]) for i in (0, 16)] == [[*range(16)], [*range(16, 32)]]
    assert numbers(0, skip=21) == whole[21:]
    assert numbers(1) != whole
    assert numbers(0, seed=1) != whole
    assert numbers(0, buffer=1) == [*range(60)]


def test_what_needs_all_lengths_or_an_end_is_refused(file: Path, make_llama: Callable, tokenizer: Any) -> None:
    stream = open_stream(str(file))
    for settings, message in (
        ({"group_by_length": True}, "--group_by_length=True needs the lengths of all rows"),
        ({"packing_length": 64}, "--packing_length=64 needs the lengths of all rows"),
        ({"max_tokens_per_micro_batch": 64}, "needs the lengths of all rows"),
    ):
        with pytest.raises(UserError, match=message):
            SFTTrainer(make_llama(), tokenizer, train_dataset=stream, **(QUIET | settings))
    for begin in (SFTTrainer.train, SFTTrainer.dry_run):
        with pytest.raises(UserError, match="--schedule=cosine .* give --max_steps, or --schedule=constant"):
            begin(SFTTrainer(make_llama(), tokenizer, train_dataset=stream, **QUIET | {"schedule": "cosine"}))
    with pytest.raises(UserError, match="validation data must be rows at hand"):
        SFTTrainer(make_llama(), tokenizer, train_dataset=stream, val_dataset=stream, **QUIET)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_ends_the_run_with_its_file_and_line(
    workers: int, file: Path, make_llama: Callable, tokenizer: Any
) -> None:
    with file.open("a") as lines:
        lines.write('{"prompt": "12>"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:61: .*completion"):
        fit(make_llama(), tokenizer, file, data_workers=workers)


def test_too_many_rows_without_a_target_end_the_run(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "1111111111>", "completion": "1"}\n' * 1200)
    options = EncodingOptions(max_length=4)
    with pytest.raises(TrainingStopped, match=r"training data: 1000 of 1000 rows have nothing to learn"):
        [*islice(SampleStream(open_stream(str(path)), tokenizer, options, "training data").read(0), 1)]


@pytest.mark.parametrize("truncation", ["end", "drop"])
def test_a_short_stream_of_which_nothing_is_left_ends_the_run_too(
    truncation: str, tmp_path: Path, make_llama: Callable, tokenizer: Any
) -> None:
    """Lightning would begin one empty epoch after another, without end."""
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "1111111111>", "completion": "1"}\n' * 20)
    with pytest.raises(TrainingStopped, match=r"training data: none of 20 rows has something to learn"):
        fit(make_llama(), tokenizer, path, max_length=4, truncation=truncation, max_steps=4, max_epochs=-1)


def test_a_short_stream_is_held_to_the_share_as_well(tmp_path: Path, tokenizer: Any) -> None:
    rows = ['{"prompt": "1111111111>", "completion": "1"}\n', '{"prompt": "1>", "completion": "1"}\n']
    path = tmp_path / "half.jsonl"
    path.write_text("".join(rows * 10))
    stream = SampleStream(open_stream(str(path)), tokenizer, EncodingOptions(max_length=4), "rows", shuffle_buffer=1)
    with pytest.raises(TrainingStopped, match="10 of 20 rows have nothing to learn"):
        [*stream.read(0)]
    assert len([*stream.read(0, skip=18)]) == 1, "two rows are too few to judge by"


def test_a_lightning_trainer_of_the_users_own_says_where_a_stream_ends(
    file: Path, make_llama: Callable, tokenizer: Any
) -> None:
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = SFTTrainer(
        make_llama(), tokenizer, train_dataset=open_stream(str(file)), batch_size=8, schedule="linear", learning_rate=1
    )
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=4, callbacks=[Rates()], **options).fit(module)
    assert rates == [1, 0.75, 0.5, 0.25]
    with pytest.raises(UserError, match="--schedule=linear .* need to know the end"):
        L.Trainer(max_epochs=1, **options).fit(module)


def test_other_options_of_reading_are_another_stream(
    file: Path, tmp_path: Path, make_llama: Callable, tokenizer: Any
) -> None:
    folder = tmp_path / "checkpoints"
    fit(make_llama(), tokenizer, file, max_steps=3, callbacks=[Checkpoint(folder)])
    with pytest.raises(UserError, match="can only be resumed with the same data: .*read with settings and tokenizer"):
        fit(make_llama(), tokenizer, file, max_length=12, resume=str(next(folder.glob("*.ckpt"))))


def test_what_has_no_effect_on_a_stream_is_told(
    file: Path, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    stream = open_stream(str(file))
    for settings, message in (
        ({"data_workers": 2}, "--data_workers=2: a stream is read by one process"),
        ({"tokenize_workers": 2}, "--tokenize_workers=2 has no effect on streamed data"),
    ):
        with pytest.warns(UserWarning, match=message):
            SFTTrainer(make_llama(), tokenizer, train_dataset=stream, **(QUIET | settings))
    with pytest.warns(UserWarning, match="only where the stream ends, which step 2 may come before"):
        fit(make_llama(), tokenizer, file, max_steps=2, val_dataset=unequal_rows(4))
