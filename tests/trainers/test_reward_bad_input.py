"""What cannot make a reward model is refused in one line, before it costs time."""

from pathlib import Path
from typing import Any

import pytest
from byte_tokenizers import byte_tokenizer
from reward_run import fit, random_pairs, scorer
from tiny_models import refused, tiny_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    LlamaForSequenceClassification,
)

from relax.data import open_stream
from relax.errors import UserError
from relax.sequence_classifier import classifier_of, load_classifier
from relax.tasks.sorting import Sorting
from trainers import RewardTrainer

ROWS = [{"prompt": "1", "chosen": "2", "rejected": "34"}, {"prompt": "2", "chosen": "3", "rejected": "4"}]


class Untouchable:
    """Rows that must not be read."""

    def __len__(self) -> int:
        raise AssertionError("the data were read")


def build(rows: Any = None, model: Any = None, **settings: Any) -> RewardTrainer:
    options: dict[str, Any] = {"batch_size": 2, "accelerator": "cpu", "enable_progress_bar": False, "max_steps": 1}
    tokenizer = Sorting().build_tokenizer()
    return RewardTrainer(
        scorer() if model is None else model,
        tokenizer,
        train_dataset=ROWS if rows is None else rows,
        **options | settings,
    )


SETTINGS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data_format": "messages"}, "--data_format must be one of preference, got messages"),
    ({"max_length": 1}, "--max_length must lie between 2 and inf, got 1"),
    ({"max_dropped_share": 2}, "--max_dropped_share must lie between 0 and 1, got 2"),
    ({"margin": -0.5}, "--margin must be above 0, got -0.5"),
    ({"margin": 1.0, "margin_column": "m"}, "only one of --margin=1.0 and --margin_column=m can be given"),
    ({"centering_coef": -1.0}, "--centering_coef must be above 0, got -1.0"),
    ({"learning_rate": 0.0}, "--learning_rate must be above 0, got 0"),
    ({"batch_size": 0}, "--batch_size must be above 0, got 0"),
    ({"centering_coeff": 0.1}, "unknown argument centering_coeff; did you mean centering_coef?"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS_REFUSED, ids=[str(s) for s, _ in SETTINGS_REFUSED])
def test_settings_are_refused_before_the_data_are_read(settings: dict[str, Any], message: str) -> None:
    with refused(message):
        build(Untouchable(), **settings)
    with refused(message):  # as the command line asks, before it loads anything
        RewardTrainer.check(**settings)


def test_rows_that_are_no_pairs_are_refused(tmp_path: Path, unequal_rows: Any) -> None:
    with refused("training data:row 1: a reward model learns from preference pairs", "'chosen'"):
        build([{"prompt": "1", "completion": "2"}])
    with refused("validation data:row 1: 'chosen' and 'rejected' are the same"):
        build(val_dataset=[{"prompt": "1", "chosen": "2", "rejected": "2"}])
    with refused("tokenized rows are no pairs; give rows with 'chosen' and 'rejected'"):
        build(unequal_rows(4))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "chosen": "2", "rejected": "3"}\n')
    with refused("training data: pairs must be at hand, not a stream; leave --streaming out"):
        build(open_stream(str(tmp_path / "rows.jsonl")))
    with refused("training data: no rows"):
        build([])


def test_a_pair_too_long_for_a_budget_is_refused_padding_counted() -> None:
    """A pair of 60 and a few tokens takes 120 where rows are padded."""
    with refused("--max_tokens_per_micro_batch=50 must hold the longest row"):
        fit(random_pairs(), max_tokens_per_micro_batch=50)
    with refused("--max_tokens_per_micro_batch=100 must hold the longest row, which has 120 tokens"):
        fit(random_pairs(), max_tokens_per_micro_batch=100, layout="padded")
    fit(random_pairs(), max_tokens_per_micro_batch=100, layout="packed", max_steps=1)


class TwoLayers(LlamaForSequenceClassification):  # type: ignore[misc]
    """A head that ReLax does not know: something happens to its output."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits.tanh() * 3
        return output


def bert() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=14, num_labels=1, **sizes))


def two_sided() -> Any:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": 4,
    }
    config = Gemma3TextConfig(
        vocab_size=14, num_labels=1, use_bidirectional_attention=True, initializer_range=0.4, **sizes
    )
    return Gemma3TextForSequenceClassification(config)


def damaged() -> Any:
    model = scorer()
    nn.init.constant_(model.score.weight, float("nan"))
    return model


MODELS: list[tuple[Any, str]] = [
    (lambda: scorer(num_labels=3), "a reward model has one output, LlamaForSequenceClassification has 3"),
    (lambda: tiny_model(vocab_size=14), "LlamaForCausalLM is a language model, which has no score"),
    (bert, "BertForSequenceClassification must be a decoder with one layer behind it"),
    (lambda: TwoLayers(scorer().config), "TwoLayers gives another score than its last layer at the last token"),
    (two_sided, "looks at later tokens; a reward model must be a causal language model"),
    (damaged, "gives scores that are no numbers (NaN); its weights are damaged"),
]


@pytest.mark.parametrize(("make", "message"), MODELS, ids=[message for _, message in MODELS])
def test_models_that_would_be_trained_as_another_are_refused(make: Any, message: str) -> None:
    with refused(message):
        build(model=make()).train()


def test_folders_that_hold_no_reward_model_and_no_language_model_are_refused(tmp_path: Path) -> None:
    scorer(num_labels=2).save_pretrained(tmp_path / "two")
    with refused("has 2 outputs; a reward model has one"):
        load_classifier(str(tmp_path / "two"))
    bert().save_pretrained(tmp_path / "encoder")
    with refused("must be a decoder with one layer behind it"):
        load_classifier(str(tmp_path / "encoder"))
    with refused("does not exist"):
        load_classifier("./nowhere")
    model = tiny_model()
    model.save_pretrained(
        tmp_path / "part", state_dict={k: v for k, v in model.state_dict().items() if "norm" not in k}
    )
    with refused("lacks 5 weights of its architecture, such as model.layers.0.input_layernorm.weight"):
        load_classifier(str(tmp_path / "part"))


def test_settings_without_effect_are_told() -> None:
    with pytest.warns(UserWarning, match="--max_length=9 has no effect on tokenized pairs"):
        build(random_pairs(), max_length=9)
    with pytest.warns(UserWarning, match="--compile_loss has no effect"):
        build(compile_loss=True)


def test_a_tokenizer_without_any_added_token_still_gets_a_padding_that_no_answer_ends_with() -> None:
    model = classifier_of(tiny_model(eos_token_id=None))
    tokenizer = byte_tokenizer(None, bos_token=None, eos_token=None, pad_token=None)
    trainer = RewardTrainer(model, tokenizer, train_dataset=[{"chosen": "!", "rejected": '"'}], batch_size=1)
    pad = model.config.pad_token_id
    assert pad is not None
    assert pad not in {tokenizer("!").input_ids[-1], tokenizer('"').input_ids[-1]}
    assert trainer.tokenizer is tokenizer


def test_a_run_is_continued_with_the_objective_that_it_began_with(tmp_path: Path) -> None:
    from callbacks import default_callbacks

    watch = default_callbacks(tmp_path, checkpoint_every_n_steps=1, progress=False)
    build(random_pairs(), output_dir=tmp_path, callbacks=watch).train()
    with pytest.raises(UserError, match="centering_coef"):
        build(random_pairs(), output_dir=tmp_path, resume="auto", centering_coef=0.1, max_steps=2).train()
