"""What the scripts load before they build a trainer: the model with its tokenizer, the critic, and the rows."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from relax.data.rows import Rows
from relax.data.sources.loading import load_rows, split_rows
from relax.data.sources.streams import RowStream, open_stream
from relax.errors import UserError
from relax.export import merged_model
from relax.hub import hub_arguments, local_folder, one_line_errors
from relax.launch.flags import DataFlags, ModelFlags
from relax.lora import LoRASettings, add_lora, load_adapter
from relax.models import check_vocabulary, load_model, load_tokenizer
from relax.rewards.score_adapter import ScoreAdapter
from relax.seeding import seed_generators
from relax.sequence_classifier import load_classifier
from relax.tasks import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


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
        tokenizer = load_tokenizer(flags.model, chat_template=flags.chat_template, **_source(flags))
        model = load_model(flags.model, **_weights(flags), **_source(flags))
    check_vocabulary(model, tokenizer)
    if lora is not None:
        return add_lora(model, lora), tokenizer
    if adapter is not None:
        return load_adapter(model, adapter), tokenizer
    return model, tokenizer


def load_judge(
    flags: ModelFlags, *, lora: LoRASettings | None, adapter: str | None, seed: int
) -> tuple["nn.Module", "PreTrainedTokenizerBase"]:
    """A reward model to train, and its tokenizer: the same as ``load_policy`` with a head that gives a score.

    Raises:
        UserError: something cannot be found, read or used.
    """
    assert flags.model is not None, "a task has its own"
    seed_generators(seed, "init")
    tokenizer = load_tokenizer(flags.model, chat_template=flags.chat_template, **_source(flags))
    model = load_classifier(flags.model, seed=seed, tell=adapter is None, **_weights(flags), **_source(flags))
    check_vocabulary(model, tokenizer)
    if lora is not None:
        return add_lora(model, lora, task_type="SEQ_CLS"), tokenizer
    if adapter is not None:
        return load_adapter(model, adapter, task_type="SEQ_CLS"), tokenizer
    return model, tokenizer


def load_critic(name: str | None, flags: ModelFlags, tokenizer: "PreTrainedTokenizerBase") -> "nn.Module | None":
    """What a critic starts from: a reward model with its head (an adapter merged) or a language model; None of none.

    Args:
        name: folder or hub name.
        flags: of the policy, for how weights are held in memory.
        tokenizer: of the policy.

    Raises:
        UserError: it cannot be found, read or used, or reads tokens by other numbers.
    """
    if name is None:
        return None
    from transformers import AutoConfig

    held: dict[str, Any] = {"dtype": flags.dtype, "attn_implementation": flags.attn_implementation}
    held |= {"trust_remote_code": flags.trust_remote_code}
    source = hub_arguments(name, None, flags.trust_remote_code)
    adapter = ScoreAdapter.find(name, source, flag="--critic_model")
    if adapter is not None:
        _check_same_tokens(adapter.base, tokenizer, flags)
        base = load_classifier(adapter.base, revision=adapter.settings.revision, tell=False, **held)
        return merged_model(load_adapter(base, str(adapter.folder), task_type="SEQ_CLS", named=adapter.named))
    with one_line_errors(f"--critic_model={name}", name):
        config = AutoConfig.from_pretrained(**source)
    _check_same_tokens(name, tokenizer, flags)
    judges = any("SequenceClassification" in kind for kind in config.architectures or [])
    return (load_classifier if judges else load_model)(name, **held)


def _check_same_tokens(name: str, ours: "PreTrainedTokenizerBase", flags: ModelFlags) -> None:
    """Refuse a critic that takes the policy's ids for other tokens; without a tokenizer nothing is known of it."""
    folder = local_folder(name)
    if folder is not None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return
    theirs = load_tokenizer(name, trust_remote_code=flags.trust_remote_code).get_vocab()
    other = [token for token, number in ours.get_vocab().items() if theirs.get(token) != number]
    if other:
        raise UserError(
            f"--critic_model={name} has another tokenizer than the policy: {other[0]!r} is not token "
            f"{ours.get_vocab()[other[0]]} there ({len(other)} tokens differ); give a model with the policy's, or none"
        )


def _source(flags: ModelFlags) -> dict[str, Any]:
    """Where a model and its tokenizer come from."""
    return {"revision": flags.revision, "trust_remote_code": flags.trust_remote_code}


def _weights(flags: ModelFlags) -> dict[str, Any]:
    """How weights are held in memory."""
    return {name: asdict(flags)[name] for name in ("dtype", "attn_implementation", "quantize")}


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
