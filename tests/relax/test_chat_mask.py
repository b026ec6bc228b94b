"""What is learnt of a conversation, proved by decoding exactly the trained tokens."""
# ruff: noqa: E501  (tables of literal messages)

import pickle
import warnings
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import (
    ALPACA,
    CHATML,
    GEMMA,
    LLAMA3,
    MISTRAL,
    PHI3,
    QWEN3,
    ZEPHYR,
    byte_tokenizer,
    sentencepiece_tokenizer,
)
from transformers import PreTrainedTokenizerBase

from relax.data import EncodingOptions, Sample, tokenize_row, tokenize_rows
from relax.errors import UserError

TWO_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trained(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[str]:
    """The text of each run of trained tokens."""
    runs = groupby(zip(sample.input_ids.tolist(), sample.loss_mask.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_trained, run in runs if is_trained]


def chat(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[str]:
    return trained(tokenizer, tokenize_row({"messages": messages}, tokenizer, EncodingOptions(**options)))


@pytest.mark.parametrize(
    ("template", "names", "expected"),
    [
        (CHATML, {"eos_token": "<|im_end|>", "bos_token": None}, ["Hello.<|im_end|>", "4<|im_end|>"]),
        (LLAMA3, {"eos_token": "<|eot_id|>"}, ["Hello.<|eot_id|>", "4<|eot_id|>"]),
        (GEMMA, {"eos_token": "<eos>", "bos_token": "<bos>"}, ["Hello.<end_of_turn>", "4<end_of_turn>"]),
        (ZEPHYR, {}, ["Hello.</s>", "4</s>"]),
        (MISTRAL, {}, [" Hello.</s>", " 4</s>"]),
        (ALPACA, {}, ["Hello.</s>", "4</s>"]),
        (PHI3, {"eos_token": "<|endoftext|>"}, ["Hello.<|end|>", "4<|end|>\n<|endoftext|>"]),
    ],
    ids=["chatml", "llama3", "gemma", "zephyr", "mistral", "alpaca", "phi3"],
)
def test_answers_and_their_end_of_turn_are_trained_and_nothing_else(
    template: str, names: dict[str, str | None], expected: list[str]
) -> None:
    tokenizer = byte_tokenizer(template, **names)
    sample = tokenize_row({"messages": TWO_TURNS}, tokenizer)

    assert trained(tokenizer, sample) == expected
    rendered = tokenizer.apply_chat_template(TWO_TURNS)["input_ids"]
    assert sample.input_ids.tolist() == rendered[: len(sample.input_ids)], "the ids are the template's own"
    assert tokenizer.decode(rendered[len(sample.input_ids) :]).isspace() or len(rendered) == len(sample.input_ids)


def test_the_prompt_before_an_answer_is_what_generation_sees() -> None:
    tokenizer = byte_tokenizer(LLAMA3, eos_token="<|eot_id|>")
    sample = tokenize_row({"messages": TWO_TURNS}, tokenizer, EncodingOptions(train_on="last"))
    prompt = tokenizer.apply_chat_template(TWO_TURNS[:3], add_generation_prompt=True)["input_ids"]

    assert sample.input_ids[: len(prompt)].tolist() == prompt
    assert sample.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(sample.input_ids) - len(prompt))


def test_train_on_last_and_all() -> None:
    tokenizer = byte_tokenizer(ZEPHYR)
    assert chat(TWO_TURNS, tokenizer, train_on="last") == ["4</s>"]
    everything = "<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\n2+2?</s>\n<|assistant|>\n4</s>"
    assert chat(TWO_TURNS, tokenizer, train_on="all") == [everything[1:]], "all but token 0, which nothing predicts"
    with pytest.raises(UserError, match="--train_on must be one of completion, last, all, got 'answers'"):
        chat(TWO_TURNS, tokenizer, train_on="answers")


def test_pad_equal_to_eos_leaves_the_end_of_turn_trained() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert chat(TWO_TURNS, tokenizer) == ["Hello.<|im_end|>", "4<|im_end|>"]


def test_turns_after_the_last_answer_are_cut() -> None:
    tokenizer = byte_tokenizer(ZEPHYR)
    sample = tokenize_row({"messages": [*TWO_TURNS, {"role": "user", "content": "Thanks"}]}, tokenizer)
    assert sample.input_ids.tolist() == tokenize_row({"messages": TWO_TURNS}, tokenizer).input_ids.tolist()


def test_prompt_and_completion_as_messages_train_the_completion_only() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    row = {"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]}
    assert trained(tokenizer, tokenize_row(row, tokenizer)) == ["4<|im_end|>"]
    tokenizer.chat_template = MARKED
    assert trained(tokenizer, tokenize_row(row, tokenizer)) == ["4<|im_end|>"], "markers mark the prompt's answers too"


def test_a_tool_result_between_two_answers_is_not_trained() -> None:
    messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "call clock"},
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
    ]
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    assert chat(messages, tokenizer) == ["call clock<|im_end|>", "Noon.<|im_end|>"]


def test_keys_that_are_none_do_not_reach_the_template() -> None:
    template = CHATML.replace(
        "message['content']", "(message['content'] ~ ('TOOLS' if 'tool_calls' in message else ''))"
    )
    tokenizer = byte_tokenizer(template, special=("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    assert chat([{**turn, "tool_calls": None} for turn in TWO_TURNS], tokenizer) == ["Hello.<|im_end|>", "4<|im_end|>"]


@pytest.mark.parametrize("end", ["<|im_end|>\n", ""], ids=["end of turn inside the markers", "outside"])
def test_generation_markers_decide_and_the_end_of_turn_is_inside(end: str) -> None:
    template = (
        MARKED
        if end
        else MARKED.replace(
            "{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}",
            "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}",
        )
    )
    tokenizer = byte_tokenizer(template, special=("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    assert chat(TWO_TURNS, tokenizer) == ["Hello.<|im_end|>", "4<|im_end|>"]
    assert chat(TWO_TURNS, tokenizer, train_on="last") == ["4<|im_end|>"]


def test_markers_that_mark_nothing_fall_back_to_prefixes() -> None:
    template = MARKED.replace("message['role'] == 'assistant'", "message['role'] == 'model'")
    tokenizer = byte_tokenizer(template, special=("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    assert chat(TWO_TURNS, tokenizer) == ["Hello.<|im_end|>", "4<|im_end|>"]


def test_answers_that_begin_with_a_space_are_marked_whole() -> None:
    """Offsets of byte-level tokenizers leave spaces out: transformers' own mask loses such a turn and all after it."""
    tokenizer = byte_tokenizer(MARKED, special=("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    messages = [{**turn, "content": " " + turn["content"]} for turn in TWO_TURNS]
    assert chat(messages, tokenizer) == [" Hello.<|im_end|>", " 4<|im_end|>"]


def test_a_template_that_rewrites_earlier_answers_is_refused_with_the_way_out() -> None:
    tokenizer = byte_tokenizer(QWEN3, eos_token="<|im_end|>")
    with pytest.raises(UserError, match=r"^data:row 1: the chat template is not stable at message 2.*--train_on=last"):
        chat(TWO_TURNS, tokenizer)
    assert chat(TWO_TURNS, tokenizer, train_on="last") == ["<think>\n\n</think>\n\n4<|im_end|>"]
    assert chat(TWO_TURNS[:2], tokenizer) == ["<think>\n\n</think>\n\nHello.<|im_end|>"]
    thinking = [TWO_TURNS[0], {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello."}]
    assert chat(thinking, tokenizer) == ["<think>\nwell\n</think>\n\nHello.<|im_end|>"]


def test_a_generation_prompt_that_no_answer_begins_with_is_refused() -> None:
    template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    with pytest.raises(
        UserError, match=r"writes '<think>\\n' where the whole conversation has .*--chat_template=FILE"
    ) as e:
        chat(TWO_TURNS[:2], byte_tokenizer(template))
    assert "--train_on=last" not in str(e.value), "it would not help"


def test_a_token_over_the_border_of_an_answer_is_split() -> None:
    """With the merge "\\n" + "\\n", an answer that begins with a newline would swallow the prompt's last one."""
    tokenizer = byte_tokenizer(ALPACA, merges=[("Ċ", "Ċ")])
    messages = [TWO_TURNS[0], {"role": "assistant", "content": "\nHello."}]
    sample = tokenize_row({"messages": messages}, tokenizer)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]

    assert trained(tokenizer, sample) == ["\nHello.</s>"]
    assert sample.input_ids[: len(prompt)].tolist() == prompt, "generation starts from exactly these"
    assert tokenizer.decode(sample.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip()


def test_a_tokenizer_that_puts_a_space_before_every_text() -> None:
    tokenizer = sentencepiece_tokenizer(MISTRAL)
    sample = tokenize_row({"messages": TWO_TURNS}, tokenizer)
    assert sample.input_ids.tolist() == tokenizer.apply_chat_template(TWO_TURNS)["input_ids"]
    learnt = [tokenizer.convert_ids_to_tokens(int(token)) for token in sample.input_ids[sample.loss_mask]]
    assert learnt[0] == "▁"
    assert learnt.count("</s>") == 2
    assert learnt[-3:] == ["▁", "<0x34>", "</s>"]


def test_an_end_of_turn_that_is_no_token_is_warned_of() -> None:
    without_end = ALPACA.replace(" + eos_token", "")
    tokenizer = byte_tokenizer(without_end)
    with pytest.warns(UserWarning, match="in 1 of 1 rows the chat template ends the last answer with no end-of-turn"):
        dataset = tokenize_rows([{"messages": TWO_TURNS}], tokenizer)
    assert trained(tokenizer, dataset[0]) == ["Hello.", "4"]
    assert dataset.report.without_end_of_turn == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize_rows([{"messages": TWO_TURNS}], byte_tokenizer(ALPACA))


@pytest.mark.parametrize(
    ("messages", "template", "expected"),
    [
        (TWO_TURNS, None, "no chat template: give another template with --chat_template=FILE"),
        ([{"role": "system", "content": "Be brief."}, *TWO_TURNS], GEMMA, "fails on these messages: System role not supported"),
        (TWO_TURNS, "{{ oops", "the chat template fails on these messages: unexpected end of template"),
        (TWO_TURNS[1:2], "{{ messages[0].role }}", "fails on no messages (the conversation begins with an assistant turn)"),
        (TWO_TURNS[:2], "{{ messages[0].content }}", "renders message 2, an answer, to nothing"),
        ([TWO_TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}], CHATML, "fails on these messages"),
        ([TWO_TURNS[0], {"role": "assistant", "content": "\ud800"}], CHATML, "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_masked_is_refused_in_one_line(messages: Any, template: str | None, expected: str) -> None:
    with pytest.raises(UserError) as error:
        chat(messages, byte_tokenizer(template))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_conversation_may_begin_with_an_answer_where_the_template_allows_it() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    assert chat(TWO_TURNS[1:], tokenizer) == ["Hello.<|im_end|>", "4<|im_end|>"]


def test_named_templates_use_the_default_one() -> None:
    tokenizer = byte_tokenizer(ZEPHYR)
    tokenizer.chat_template = {"default": ZEPHYR, "tool_use": CHATML}
    assert chat(TWO_TURNS, tokenizer) == ["Hello.</s>", "4</s>"]
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(UserError, match="no chat template"):
        chat(TWO_TURNS, tokenizer)


def test_many_rows_give_what_one_row_gives() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    rows = [{"messages": [TWO_TURNS[0], {"role": "assistant", "content": "x" * n}]} for n in range(1, 2500, 2)]
    dataset = tokenize_rows(rows, tokenizer)
    assert len(dataset) == 1250
    for at in (0, 999, 1000, 1249):
        one = tokenize_row(rows[at], tokenizer)
        np.testing.assert_array_equal(dataset[at].input_ids, one.input_ids)
        np.testing.assert_array_equal(dataset[at].loss_mask, one.loss_mask)
    assert pickle.loads(pickle.dumps(dataset)).fingerprint == dataset.fingerprint
