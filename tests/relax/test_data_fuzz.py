"""Any row whatever gives a sample or one clear line, never a traceback; a sound one is never refused."""

import json
from typing import Any

import pytest
from byte_tokenizers import CHATML, byte_tokenizer, sentencepiece_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relax.data import EncodingOptions, tokenize_row
from relax.data.examples import Chat, Preference, Prompt, Text, Tokens
from relax.data.formats.formats import FORMATS, read_weight, rename
from relax.data.formats.messages import ROLES, SHAREGPT_ROLES
from relax.errors import UserError

# Writes tools and calls the way Hermes and Qwen do, and refuses what such templates refuse.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content %}{{ message.content }}{% endif %}{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = byte_tokenizer()
CHAT = byte_tokenizer(CHATML, eos_token="<|im_end|>")
TOOL_CHAT = byte_tokenizer(TOOLS, special=("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
TOKENIZERS = [PLAIN, CHAT, TOOL_CHAT, sentencepiece_tokenizer(CHATML)]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),  # half surrogates included
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def now_and_then(rare: st.SearchStrategy[Any], usual: st.SearchStrategy[Any], out_of: int) -> st.SearchStrategy[Any]:
    """One in ``out_of`` draws is the rare one. Strategies are built once: building them in a draw is slow."""
    return st.sampled_from([usual] * (out_of - 1) + [rare]).flatmap(lambda drawn: drawn)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is expected there, and now and then anything at all."""
    return now_and_then(anything, usual, out_of=16)


def objects(
    required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]] | None = None
) -> st.SearchStrategy[Any]:
    """Objects with these keys, now and then without some, or no objects."""
    needed = {key: mostly(value) for key, value in required.items()}
    others = {key: mostly(value) for key, value in (optional or {}).items()}
    lacking = st.fixed_dictionaries({}, optional={**needed, **others})
    return mostly(now_and_then(lacking, st.fixed_dictionaries(needed, optional=others), out_of=8))


names = st.sampled_from(["f", "g"])
arguments = st.dictionaries(names, st.none() | st.integers() | st.text(max_size=2), max_size=2)
functions = objects({"name": names}, {"arguments": arguments | arguments.map(json.dumps)})
calls = st.lists(functions | objects({"function": functions}, {"type": st.just("function")}), max_size=2)
said = st.text(min_size=1, max_size=4)
content = said | st.lists(objects({"text": said}, {"type": st.just("text")}), max_size=2)
turns = objects(
    {"role": st.sampled_from(ROLES), "content": content},
    {"weight": st.sampled_from([0, 1]), "reasoning_content": said},
) | objects({"role": st.just("assistant")}, {"tool_calls": calls, "content": content})
sharegpt_turns = objects({"from": st.sampled_from([*SHAREGPT_ROLES]), "value": content}) | objects(
    {"from": st.just("function_call"), "value": functions.map(json.dumps)}
)
messages = mostly(st.lists(turns, min_size=1, max_size=3))
schemas = st.lists(functions, max_size=2)
text = st.text(max_size=5)
ids = st.lists(st.integers(0, 300), max_size=4)
marks = st.lists(st.integers(0, 1), max_size=4)

ROW_COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "messages": messages,
    "conversations": mostly(st.lists(sharegpt_turns | turns, min_size=1, max_size=3)),
    "system": text,
    "tools": schemas | schemas.map(json.dumps) | schemas.map(lambda tools: [json.dumps(tool) for tool in tools]),
    **dict.fromkeys(("chosen", "rejected", "prompt", "completion"), text | messages),
    **dict.fromkeys(("instruction", "input", "output", "text"), text),
    **dict.fromkeys(("input_ids", "position_ids", "seq_lengths"), ids),
    "labels": st.lists(st.integers(0, 300) | st.just(-100), max_size=4),
    **dict.fromkeys(("loss_mask", "completion_mask", "assistant_masks", "attention_mask"), marks),
    "id": anything,
}


def rows_of(format_name: str) -> st.SearchStrategy[Any]:
    """Rows with the columns of the format, with a few others, or no rows at all."""
    known = FORMATS[format_name]
    required = {column: mostly(ROW_COLUMNS[column]) for column in known.columns}
    optional = {column: mostly(ROW_COLUMNS[column]) for column in (*known.optional, "text", "prompt", "id")}
    fitting = st.fixed_dictionaries(
        required, optional={key: optional[key] for key in optional.keys() - required.keys()}
    )
    return mostly(fitting)


formatted_rows = st.one_of([st.tuples(st.just(name), rows_of(name)) for name in FORMATS])
any_fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def check_message(error: UserError) -> None:
    message = str(error)
    assert "\n" not in message
    assert 10 < len(message) < 1000


@settings(any_fuzz, max_examples=800)
@given(formatted_rows)
def test_any_row_under_any_format_is_read_or_refused_in_one_line(formatted: tuple[str, Any]) -> None:
    name, row = formatted
    before = repr(row)
    try:
        example = FORMATS[name].read(row)
    except UserError as error:
        check_message(error)
    else:
        assert isinstance(example, Text | Chat | Tokens | Prompt | Preference)
    assert repr(row) == before, "a row is never changed"


@settings(any_fuzz, max_examples=600)
@given(
    formatted=formatted_rows,
    is_named=st.booleans(),
    tokenizer=st.sampled_from(TOKENIZERS),
    train_on=st.sampled_from(["completion", "last", "all"]),
    truncation=st.sampled_from(["end", "start", "drop", "error"]),
    max_length=st.none() | st.integers(2, 30),
)
def test_any_row_gives_a_sample_or_a_clear_error(
    formatted: tuple[str, Any], is_named: bool, tokenizer: Any, train_on: Any, truncation: Any, max_length: int | None
) -> None:
    name, row = formatted
    options = EncodingOptions(
        max_length=max_length, truncation=truncation, train_on=train_on, format=name if is_named else None
    )
    try:
        sample = tokenize_row(row, tokenizer, options)
    except UserError as error:
        check_message(error)
        return
    assert sample.loss_mask.any()
    assert not sample.loss_mask[0]
    assert sample.input_ids.shape == sample.loss_mask.shape
    assert len(sample.input_ids) <= (max_length or len(sample.input_ids))
    assert 0 <= sample.input_ids.min() <= sample.input_ids.max() < len(tokenizer)


@settings(any_fuzz, max_examples=100)
@given(row=anything, columns=st.dictionaries(st.sampled_from([*ROW_COLUMNS]), st.text(max_size=3), max_size=2))
def test_any_row_is_renamed_and_weighed_or_refused_in_one_line(row: Any, columns: dict[str, str]) -> None:
    for call in (lambda: rename(row, columns), lambda: read_weight(row, next(iter(row), "w"))):
        try:
            result = call()
        except UserError as error:
            check_message(error)
        except TypeError:
            assert not isinstance(row, dict | list | str), "the test itself found no column to ask for"
        else:
            assert isinstance(result, dict) or 0 <= result < float("inf")


plain_text = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=8).filter(str.strip)
exchanges = st.lists(st.tuples(plain_text, plain_text), min_size=1, max_size=3)


@settings(any_fuzz, max_examples=50)
@given(exchanges=exchanges, is_sharegpt=st.booleans(), system=st.none() | plain_text)
def test_a_sound_conversation_is_learnt_answer_by_answer(
    exchanges: list[tuple[str, str]], is_sharegpt: bool, system: str | None
) -> None:
    user, assistant, role, text = (
        ("human", "gpt", "from", "value") if is_sharegpt else ("user", "assistant", "role", "content")
    )
    turns = [{role: who, text: what} for pair in exchanges for who, what in zip((user, assistant), pair, strict=True)]
    opening = [] if system is None else [{role: "system", text: system}]
    row = {"conversations" if is_sharegpt else "messages": [*opening, *turns]}

    sample = tokenize_row(row, CHAT)

    learnt = "".join(answer + "<|im_end|>" for _, answer in exchanges)
    assert CHAT.decode(sample.input_ids[sample.loss_mask]) == learnt


@settings(any_fuzz, max_examples=100)
@given(
    marked=st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=2, max_size=8), padding=st.integers(0, 3)
)
def test_sound_token_rows_are_learnt_where_their_labels_say(marked: list[tuple[int, bool]], padding: int) -> None:
    learnt = [is_learnt for _, is_learnt in marked]
    row = {
        "input_ids": [token for token, _ in marked] + [0] * padding,
        "labels": [token if is_learnt else -100 for token, is_learnt in marked] + [-100] * padding,
        "attention_mask": [1] * len(marked) + [0] * padding,
    }
    if not any(learnt[1:]):
        with pytest.raises(UserError, match="no training target"):
            tokenize_row(row, PLAIN)
        return
    sample = tokenize_row(row, PLAIN)
    assert sample.input_ids.tolist() == [token for token, _ in marked]
    assert sample.loss_mask.tolist() == [False, *learnt[1:]]
