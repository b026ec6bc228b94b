"""What the scripts load before they build a trainer: the model with its tokenizer, and the rows."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from relax.data.rows import Rows
from relax.data.sources.loading import load_rows, split_rows
from relax.data.sources.streams import RowStream, open_stream
from relax.launch.flags import DataFlags, ModelFlags
from relax.lora import LoRASettings, add_lora, load_adapter
from relax.models import check_vocabulary, load_model, load_tokenizer
from relax.seeding import seed_generators
from relax.tasks import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def load_policy(
    flags: ModelFlags, *, lora: LoRASettings | None, adapter: str | None, task: Task | None, seed: int
) -> tuple["nn.Module", "PreTrainedTokenizerBase"]:
    """Model and tokenizer, with the adapter to train if one is asked for.

    Args:
        flags: the model, and how it is loaded.
        lora: a new adapter to add.
        adapter: folder or hub name of one to go on with.
        task: whose fresh model is used when ``flags`` names none.
        seed: of fresh weights.

    Raises:
        UserError: something cannot be found, read or used.
    """
    seed_generators(seed, "init")
    if flags.model is None:
        assert task is not None, "pick_task refuses data without a model"
        model, tokenizer = task.build_model(seed), task.build_tokenizer()
    else:
        given = asdict(flags)
        source = {flag: given[flag] for flag in ("revision", "trust_remote_code")}
        tokenizer = load_tokenizer(flags.model, chat_template=flags.chat_template, **source)
        weights = {flag: given[flag] for flag in ("dtype", "attn_implementation", "quantize")}
        model = load_model(flags.model, **weights, **source)
    check_vocabulary(model, tokenizer)
    if lora is not None:
        return add_lora(model, lora), tokenizer
    if adapter is not None:
        return load_adapter(model, adapter), tokenizer
    return model, tokenizer


def load_data(flags: DataFlags, *, builtin: Rows | None, seed: int) -> tuple[Rows, Rows | None]:
    """Training rows and held-out rows (or None), all at hand.

    Args:
        flags: where they are.
        builtin: a task's own, for training where ``flags`` names no data.
        seed: of the split.

    Raises:
        UserError: something cannot be found, read or split.
    """
    if flags.dataset is not None:
        rows: Rows = load_rows(flags.dataset, flags.dataset_split, name=flags.dataset_name)
    else:
        assert builtin is not None, "pick_task refuses a model without data"
        rows = builtin
    if flags.val_split is not None:
        share = flags.val_split
        return split_rows(rows, share if share < 1 else int(share), seed)
    return rows, load_held_out(flags)


def load_or_stream(
    flags: DataFlags, *, builtin: Rows | None, seed: int, streaming: bool
) -> tuple[Rows | RowStream, Rows | None]:
    """The same, but with ``streaming`` training rows from a source are read as they are needed.

    Raises:
        UserError: something cannot be found, read or split.
    """
    if not streaming or flags.dataset is None:
        return load_data(flags, builtin=builtin, seed=seed)
    return open_stream(flags.dataset, flags.dataset_split, name=flags.dataset_name), load_held_out(flags)


def load_held_out(flags: DataFlags) -> Rows | None:
    """The rows of ``--val_dataset``, if it is given.

    Raises:
        UserError: they cannot be found or read.
    """
    if flags.val_dataset is None:
        return None
    name = flags.dataset_name if flags.val_dataset == flags.dataset else None
    return load_rows(flags.val_dataset, flags.val_dataset_split, name=name)
