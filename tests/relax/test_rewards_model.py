"""A sequence-classification checkpoint as a reward: its own logits, whatever the batch, the padding and the kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizers import byte_tokenizer, family_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from relax.errors import UserError
from relax.rewards import RewardFailed, Sample, build_rewards
from relax.rewards.reward_model import RewardModel
from relax.tasks.sorting import Sorting

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
PROMPTS = ["Hi", "How are you?", "1+1", "x", "A longer one, to be padded against"]
COMPLETIONS = ["there", "well", "2<|end|>", "", "a " * 20]


def llama(**changes: Any) -> PreTrainedModel:
    return LlamaForSequenceClassification(
        LlamaConfig(**(SIZE | {"num_labels": 1, "max_position_embeddings": 128} | changes))
    )


def gpt2(**changes: Any) -> PreTrainedModel:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 320, "num_labels": 1}
    return GPT2ForSequenceClassification(GPT2Config(**(sizes | changes)))


def bert(**changes: Any) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(**(SIZE | {"num_labels": 1, "max_position_embeddings": 128} | changes))
    )


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[PreTrainedModel, PreTrainedTokenizerFast], str]:
    def store(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
        torch.manual_seed(0)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return store


def text_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    tokens = {"eos_token": "<|end|>", "pad_token": "<|end|>"} | special
    return byte_tokenizer(None, special=(), bos_token=None, **tokens)


@torch.no_grad()
def one_by_one(folder: str, kind: type[PreTrainedModel], texts: list[str]) -> list[float]:
    """The oracle: no batch, no padding, the output at the last token."""
    model = kind.from_pretrained(folder, dtype="float32").eval()
    model.config.pad_token_id = None  # a batch of one: the output at the last token, whatever it is
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return [model(torch.tensor([tokenizer(text).input_ids])).logits.item() for text in texts]


@pytest.mark.parametrize("build", [llama, gpt2])
def test_scores_are_the_logits_however_rows_are_batched(stored: Callable[..., str], build: Any) -> None:
    model = build()
    folder = stored(model, text_tokenizer())
    expected = one_by_one(folder, type(model), [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    for batch_size in (1, 2, 16):
        assert RewardModel(folder, batch_size=batch_size)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 5


def test_a_batch_in_which_every_token_occurs_is_right_too(stored: Callable[..., str]) -> None:
    tokenizer = Sorting().build_tokenizer()
    folder = stored(llama(vocab_size=len(tokenizer)), tokenizer)
    completions = ["0123456789?>", "12<eos><pad>", "3"]
    expected = one_by_one(folder, LlamaForSequenceClassification, completions)
    assert RewardModel(folder)([""] * 3, completions) == pytest.approx(expected, abs=1e-5)


def test_a_chat_template_is_followed(stored: Callable[..., str]) -> None:
    tokenizer = family_tokenizer("chatml")
    folder = stored(llama(vocab_size=len(tokenizer)), tokenizer)
    asked = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "there"}], tokenize=False)
    expected = one_by_one(folder, LlamaForSequenceClassification, [text])
    assert RewardModel(folder)(["Hi", asked], ["there", "there"]) == pytest.approx(expected * 2, abs=1e-5)


def test_an_encoder_gets_the_two_as_a_pair(stored: Callable[..., str]) -> None:
    folder = stored(bert(), text_tokenizer(sep_token="<|sep|>", cls_token="<|cls|>"))
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        pairs = [tokenizer(p, c, return_tensors="pt") for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
        expected = [model(**pair).logits.item() for pair in pairs]
    assert RewardModel(folder, batch_size=3)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_a_label_of_a_classifier_is_its_probability(stored: Callable[..., str]) -> None:
    labels = {0: "bad", 1: "fair", 2: "good"}
    folder = stored(llama(num_labels=3, id2label=labels, label2id={v: k for k, v in labels.items()}), text_tokenizer())
    scores = [RewardModel(folder, label=label)(PROMPTS, COMPLETIONS) for label in labels.values()]
    assert [sum(column) for column in zip(*scores, strict=True)] == pytest.approx([1.0] * 5)
    with pytest.raises(UserError, match=r"has several outputs; give label, one of bad, fair, good \(got None\)"):
        RewardModel(folder)
    with pytest.raises(UserError, match=r"\(got best\)"):
        RewardModel(folder, label="best")


def test_what_is_too_long_loses_its_beginning_with_a_warning(stored: Callable[..., str]) -> None:
    folder = stored(llama(max_position_embeddings=32), text_tokenizer())
    completion = "the end, which counts for the score."
    (expected,) = one_by_one(folder, LlamaForSequenceClassification, [completion[-32:]])
    with pytest.warns(UserWarning, match="limit of 32 tokens, and their beginning"):
        (score,) = RewardModel(folder)(["a long beginning " * 9], [completion])
    assert score == pytest.approx(expected, abs=1e-5)


def test_it_is_a_reward_by_name(stored: Callable[..., str]) -> None:
    folder = stored(llama(), text_tokenizer())
    samples = [Sample(p, c, {}) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = RewardModel(folder)(PROMPTS, COMPLETIONS)
    scores = build_rewards(f"model={folder}:2").score(samples)
    assert scores.total == pytest.approx([2 * score for score in expected])
    with pytest.raises(RewardFailed, match="has no chat template, and the prompts are messages"):
        build_rewards(f"model={folder}").score([Sample([{"role": "user", "content": "Hi"}], "c", {})])


def test_a_language_model_is_refused(tmp_path: Path, make_llama: Callable[..., Any]) -> None:
    make_llama(vocab_size=320).save_pretrained(tmp_path)
    text_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no trained score\.weight"):
        RewardModel(str(tmp_path))


def test_pickled_weights_and_missing_folders_are_refused(stored: Callable[..., str]) -> None:
    folder = Path(stored(llama(), text_tokenizer()))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the reward model"):
        RewardModel(str(folder))
    with pytest.raises(UserError, match="does not exist"):
        build_rewards("model=./nowhere")
