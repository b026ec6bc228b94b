"""SFTTrainer: what it computes, and that it learns."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from callbacks import NaNGuard
from relax.data.batching.batches import collate_packed
from relax.data.tokens.tokenized import Sample
from relax.errors import NonFiniteLoss, UserError
from relax.tasks.grading import accuracy
from relax.tasks.sorting import Sorting
from trainers import SFTTrainer

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def test_it_learns_a_toy_task_and_stops_where_the_text_ends(tokenizer: Any) -> None:
    """Repeat the prompt's last digit three times, then end of text."""
    digits = "0123456789"
    rows = [{"prompt": f"{a}{b}>", "completion": b * 3} for a in digits for b in digits]
    model = Sorting().build_model(0)
    SFTTrainer(
        model,
        tokenizer,
        train_dataset=rows * 4,
        learning_rate=5e-3,
        batch_size=32,
        max_epochs=5,
        schedule="linear",
        **QUIET,
    ).train()
    held_out = [{"prompt": f"{a}{b}>", "answer": b * 3} for a in digits for b in digits]
    assert accuracy(model, tokenizer, held_out, lambda p, c: float(c == p[1] * 3)) == 1.0


def test_validation_is_exact_over_the_whole_set(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    """Loss, perplexity and accuracy over all targets, not means of batch means."""
    held_out = unequal_rows(7, seed=3)
    model = make_llama()
    trainer = SFTTrainer(
        model,
        tokenizer,
        train_dataset=unequal_rows(8),
        val_dataset=held_out,
        learning_rate=1e-9,
        batch_size=4,
        micro_batch_size=2,
        **QUIET,
    ).train()
    total, right = 0.0, 0
    for sample in (held_out[i] for i in range(7)):
        ids, mask = torch.tensor(sample.input_ids).long(), torch.tensor(sample.loss_mask)[1:]
        logits = model(ids[None]).logits[0, :-1][mask]
        total += F.cross_entropy(logits, ids[1:][mask], reduction="sum").item()
        right += int((logits.argmax(-1) == ids[1:][mask]).sum())
    targets = int(held_out.num_targets.sum())
    figures = trainer.trainer.callback_metrics
    assert figures["val/loss"].item() == pytest.approx(total / targets, rel=1e-5)
    assert figures["val/perplexity"].item() == pytest.approx(math.exp(total / targets), rel=1e-5)
    assert figures["val/token_accuracy"].item() == pytest.approx(right / targets)


def test_a_batch_without_a_target_names_its_rows(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    trainer = SFTTrainer(make_llama(), tokenizer, train_dataset=unequal_rows(), **QUIET)
    batch = collate_packed([Sample.of([5, 6, 7], [False] * 3), Sample.of([5, 6], [False] * 2)], rows=[41, 7])
    with pytest.raises(UserError, match=r"needs a trainable token, rows \[41, 7\] have none"):
        trainer.compute_loss(batch)


def test_a_nan_loss_stops_before_the_weights_are_touched_and_names_the_row(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows(8)
    model: LlamaForCausalLM = make_llama()
    bad_token = int(rows[3].input_ids[0])
    carriers = {i for i in range(8) if bad_token in rows[i].input_ids[:-1]}
    model.model.embed_tokens.weight.data[bad_token] = float("nan")
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer = SFTTrainer(model, tokenizer, train_dataset=rows, batch_size=8, callbacks=[NaNGuard()], **QUIET)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.train()
    named = {
        int(word) - 1
        for word in str(caught.value).split("(rows ")[1].split(")")[0].replace(",", " ").split()
        if word.isdigit()
    }
    assert named
    assert named <= carriers
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_plain_rows_are_tokenized_and_wrong_ones_refused(make_llama: Callable, tokenizer: Any) -> None:
    trainer = SFTTrainer(make_llama(), tokenizer, train_dataset=[{"prompt": "52>", "completion": "25"}] * 3, **QUIET)
    ids, mask, _ = trainer.train_data[0]
    assert tokenizer.decode(ids[mask]) == "25<eos>"
    with pytest.raises(UserError, match="training data"):
        SFTTrainer(make_llama(), tokenizer, train_dataset=[{"question": "52>"}], **QUIET)
    with pytest.raises(UserError, match="validation data"):
        SFTTrainer(make_llama(), tokenizer, train_dataset=[{"text": "5"}], val_dataset=[{"text": None}], **QUIET)


def test_settings_are_refused_before_rows_are_tokenized(make_llama: Callable, tokenizer: Any) -> None:
    class Untouchable(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("touched")

    with pytest.raises(UserError, match="--learning_rate"):
        SFTTrainer(make_llama(), tokenizer, train_dataset=Untouchable([1]), learning_rate=-1, **QUIET)


def test_export_is_what_was_trained(
    make_llama: Callable, tokenizer: Any, unequal_rows: Callable, tmp_path: Path
) -> None:
    from callbacks import default_callbacks

    model = make_llama()
    SFTTrainer(
        model,
        tokenizer,
        train_dataset=unequal_rows(8),
        output_dir=tmp_path / "run",
        callbacks=default_callbacks(tmp_path / "run", progress=False),
        **QUIET,
    ).train()
    again = LlamaForCausalLM.from_pretrained(tmp_path / "run/model")
    ids = torch.tensor([[4, 5, 6, 7]])
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    card = (tmp_path / "run/model/README.md").read_text()
    assert "train/loss" in card


def test_a_data_set_of_the_datasets_library_is_cached_and_its_bad_rows_are_placed(
    make_llama: Callable, tokenizer: Any, tmp_path: Path
) -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": "52>", "completion": "25"}, {"prompt": "31>", "completion": "13"}])
    cache = tmp_path / "cache"
    first, second = (
        SFTTrainer(make_llama(), tokenizer, train_dataset=rows, data_cache=str(cache), **QUIET) for _ in range(2)
    )
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 1
    assert first.train_data.fingerprint == second.train_data.fingerprint
    bad = Dataset.from_list([{"prompt": "52>", "completion": "25"}, {"prompt": "31>", "completion": ""}])
    with pytest.raises(ValueError, match="training data:row 2: the completion is empty"):
        SFTTrainer(make_llama(), tokenizer, train_dataset=bad, **QUIET)
