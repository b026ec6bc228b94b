"""Chat turns as data sets have them: roles, parts, tools and their calls, ShareGPT; what is wrong with a bad one."""
# ruff: noqa: E501  (tables of literal messages)

from typing import Any

import pytest

from relax.data.examples import Chat, Prompt
from relax.data.formats.formats import FORMATS
from relax.errors import UserError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def read(messages: Any, **columns: Any) -> Chat:
    chat = FORMATS["messages"].read({"messages": messages, **columns})
    assert isinstance(chat, Chat)
    return chat


def sharegpt(conversations: Any, **columns: Any) -> Chat:
    chat = FORMATS["conversations"].read({"conversations": conversations, **columns})
    assert isinstance(chat, Chat)
    return chat


def refusal(format_name: str, row: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        FORMATS[format_name].read(row)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_assistant_turn_is_an_answer() -> None:
    turns = [{"role": "system", "content": "S"}, USER, ANSWER, {"role": "user", "content": ""}, ANSWER, USER]
    assert read(turns) == Chat(turns, answers=[2, 4])


def test_prompt_and_completion_messages_become_one_conversation() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER], "tools": [{"name": "f"}]}
    assert FORMATS["prompt_completion"].read(row) == Chat([USER, ANSWER, USER, ANSWER], [3], [{"name": "f"}])
    assert refusal("prompt_completion", {"prompt": [USER], "completion": "Hello"}) == (
        "'completion' must be a list of messages, got str"
    )


def test_a_prompt_is_text_or_messages_that_end_before_the_answer() -> None:
    assert FORMATS["prompt"].read({"prompt": "Hi"}) == Prompt("Hi")
    assert FORMATS["prompt"].read({"prompt": [USER], "tools": '[{"name": "f"}]'}) == Prompt([USER], [{"name": "f"}])
    assert refusal("prompt", {"prompt": [USER, ANSWER]}) == (
        "'prompt' ends with an assistant turn: a prompt ends before the answer"
    )


def test_keys_that_hold_null_are_taken_out_but_not_of_a_calls_arguments() -> None:
    user = {"role": "user", "content": "Hi", "tool_calls": None, "name": None}
    call = {"id": None, "function": {"name": "f", "arguments": {"city": "Rome", "query": None}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    before = str(answer)
    assert read([user, answer]).messages == [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"city": "Rome", "query": None}}}
            ],
        },
    ]
    assert str(answer) == before, "the row itself is left alone"


def test_text_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo", "url": None}, {"text": "!"}]
    assert read([USER, {"role": "assistant", "content": parts}]).messages[1]["content"] == "Hello!"


def test_reasoning_and_other_keys_stay_for_the_template() -> None:
    answer = {**ANSWER, "reasoning_content": "Hm.", "tool_call_id": 3}
    assert read([USER, answer]).messages[1] == answer


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}


@pytest.mark.parametrize(
    "given",
    [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": null}'}},
        {"function": {"name": "f", "arguments": '{"a": 1, "b": null}'}},
        {"name": "f", "arguments": '{"a": 1, "b": null}'},
    ],
)
def test_tool_calls_come_wrapped_or_bare_with_their_arguments_in_a_string(given: dict[str, Any]) -> None:
    [_, answer] = read([USER, {"role": "assistant", "content": "", "tool_calls": [given]}]).messages
    assert answer == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_a_call_in_the_older_words_is_one_of_several() -> None:
    answer = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1, "b": null}'}}
    assert read([USER, answer]).messages[1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    with pytest.raises(UserError, match="call 1 of 'function_call' of message 2 of 'messages' must have the 'name'"):
        read([USER, {"role": "assistant", "content": "x", "function_call": {"arguments": "{}"}}])


@pytest.mark.parametrize(
    ("arguments", "expected"), [("not json", "not json"), ("[1]", "[1]"), ("", ""), ("{}", {}), (None, {})]
)
def test_arguments_that_are_no_object_stay_as_the_model_wrote_them(arguments: Any, expected: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    [_, answer] = read([USER, {"role": "assistant", "tool_calls": [call]}]).messages
    assert answer["tool_calls"][0]["function"]["arguments"] == expected


SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([SCHEMA], [SCHEMA]),
        ('[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]', [SCHEMA]),
        (['{"name": "f"}'], [{"name": "f"}]),
        ([{"name": "f", "strict": None}], [{"name": "f", "strict": None}]),
        (None, None),
        ([], None),
        ("", None),
        ("[]", None),
    ],
)
def test_tools_are_objects_or_json_in_strings(tools: Any, expected: Any) -> None:
    assert read([USER, ANSWER], tools=tools).tools == expected
    assert sharegpt([{"from": "gpt", "value": "Hi"}], tools=tools).tools == expected


def test_a_sharegpt_conversation_is_translated() -> None:
    roles = ["system", "human", "gpt", "user", "chatgpt", "human", "bing", "human", "bard", "human", "assistant"]
    chat = sharegpt([{"from": role, "value": role} for role in roles])
    ours = ["system", *["user", "assistant"] * 5]
    assert chat.messages == [{"role": our, "content": role} for our, role in zip(ours, roles, strict=True)]
    assert chat.answers == [2, 4, 6, 8, 10]


def test_sharegpt_calls_and_their_results_are_translated() -> None:
    chat = sharegpt(
        [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1, "b": null}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Rain.", "role": None},
            {"role": "tool_call", "content": '[{"name": "f", "arguments": "{}"}, {"name": "g"}]'},
        ]
    )
    written = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in "fg"]
    assert chat.messages == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
        {"role": "assistant", "content": None, "tool_calls": written},
    ]
    assert chat.answers == [1, 3, 4]


def test_a_system_column_opens_a_sharegpt_conversation() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    system = {"role": "system", "content": "S"}
    assert sharegpt(turns, system="S") == Chat([system, USER, ANSWER], [2])
    assert sharegpt([{"from": "system", "value": "S"}, *turns], system="S") == Chat([system, USER, ANSWER], [2])
    for nothing in (None, ""):
        assert sharegpt(turns, system=nothing) == Chat([USER, ANSWER], [1])
    assert refusal("conversations", {"conversations": [{"from": "system", "value": "T"}, *turns], "system": "S"}) == (
        "'conversations' begins with a system turn, and the column 'system' says something else; keep one"
    )
    assert refusal("conversations", {"conversations": turns, "system": 3}) == "'system' must be a string, got int"


def test_turns_of_weight_0_are_read_but_not_learnt() -> None:
    silent, openly = {**ANSWER, "weight": 0}, {**ANSWER, "weight": 1}
    assert read([USER, silent, USER, openly]).answers == [3]
    assert read([USER, {**ANSWER, "train": False}, USER, ANSWER, USER, silent]).answers == [3]
    assert refusal("messages", {"messages": [USER, ANSWER, USER, silent, USER, ANSWER]}) == (
        "'messages' has a turn of weight 0 between learnt ones: cut the conversation into several rows"
    )
    call = {"from": "function_call", "value": '{"name": "f"}'}
    turns = [{"from": "human", "value": "Hi"}, call | {"weight": 0}, {"from": "observation", "value": "x"}, call]
    assert sharegpt(turns).answers == [3]
    assert refusal("messages", {"messages": [USER, silent]}) == (
        "every assistant turn of 'messages' has the weight 0: there is nothing to learn"
    )
    assert refusal("messages", {"messages": [USER, {**ANSWER, "weight": 0.5}]}) == (
        "message 2 of 'messages' has 'weight'=0.5: a turn is learnt (1) or not (0)"
    )


ROLES = "system, developer, user, assistant, tool, function, ipython"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "'messages' must be a list of messages, got nothing (null)"),
        ([], "'messages' must be a list of messages, got an empty list"),
        ("Hi", "'messages' must be a list of messages, got str"),
        (["Hi"], "message 1 of 'messages' must be an object with 'role' and 'content', got str"),
        ([USER, None], "message 2 of 'messages' must be an object with 'role' and 'content', got nothing (null)"),
        ([USER, {"content": "Hi"}], "message 2 of 'messages' must have a 'role' such as 'user' or 'assistant', got nothing (null)"),
        ([USER, {"role": 3, "content": "Hi"}], "message 2 of 'messages' must have a 'role' such as 'user' or 'assistant', got int"),
        ([USER, {"role": "Asistant", "content": "x"}], f"message 2 of 'messages' has the unknown role 'Asistant': known are {ROLES}; did you mean 'assistant'?"),
        ([USER, {"role": "x" * 10**6, "content": "x"}], f"message 2 of 'messages' has the unknown role '{'x' * 39}...': known are {ROLES}"),
        ([USER, {"role": "gpt", "content": "x"}], "message 2 of 'messages' is a ShareGPT turn, which is read from a column 'conversations' only: rename the column with --columns=\"{conversations: NAME}\""),
        ([{"from": "human", "value": "x"}], "message 1 of 'messages' is a ShareGPT turn, which is read from a column 'conversations' only: rename the column with --columns=\"{conversations: NAME}\""),
        ([USER], "'messages' has no turn of the role 'assistant' to learn, its roles are ['user']"),
        ([USER, {"role": "assistant"}], "message 2 of 'messages' must have a string 'content', got nothing (null)"),
        ([USER, {"role": "assistant", "content": 4}], "message 2 of 'messages' must have a string 'content', got int"),
        ([USER, {"role": "assistant", "content": ""}], "message 2 of 'messages' is an empty assistant turn: there is nothing to learn"),
        ([USER, {"role": "assistant", "content": []}], "message 2 of 'messages' must have a string 'content', got an empty list"),
        ([USER, {"role": "assistant", "content": [{"type": "image", "url": "a"}]}], "message 2 of 'messages' must have text as its 'content', got a part of another kind: 'image'"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": None}]}], "message 2 of 'messages' must have text as its 'content', got a part of another kind: 'text'"),
        ([USER, {"role": "assistant", "content": ["a"]}], "message 2 of 'messages' must have text as its 'content', got a part of another kind: str"),
        ([USER, {**ANSWER, "reasoning_content": ["Hm."]}], "message 2 of 'messages' must have a string 'reasoning_content', got list"),
        ([{**USER, "tool_calls": [CALL]}, ANSWER], "message 1 of 'messages' has 'tool_calls' and the role 'user': only the assistant calls tools"),
        ([USER, {**ANSWER, "tool_calls": {}}], "'tool_calls' of message 2 of 'messages' must be a list of calls, got an empty dict"),
        ([USER, {**ANSWER, "tool_calls": ["f"]}], "call 1 of 'tool_calls' of message 2 of 'messages' must be an object with 'name' and 'arguments', got str"),
        ([USER, {**ANSWER, "tool_calls": [{"function": "f"}]}], "call 1 of 'tool_calls' of message 2 of 'messages' must hold a 'function' with 'name' and 'arguments', got str"),
        ([USER, {**ANSWER, "tool_calls": [{"name": 3}]}], "call 1 of 'tool_calls' of message 2 of 'messages' must have the 'name' of a function, got 3"),
        ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": [1]}]}], "call 1 of 'tool_calls' of message 2 of 'messages' must have 'arguments' in an object or a JSON string, got list"),
        ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"a": b""}}]}], "call 1 of 'tool_calls' of message 2 of 'messages' has 'arguments' that JSON cannot hold (Object of type bytes is not JSON serializable)"),
    ],
)  # fmt: skip
def test_a_bad_conversation_is_explained_in_one_line(messages: Any, message: str) -> None:
    assert refusal("messages", {"messages": messages}) == message


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"value": "x"}], "message 1 of 'conversations' must have a 'from' such as 'human' or 'gpt', got nothing (null)"),
        ([{"from": "gpt"}], "message 1 of 'conversations' must have a string 'content', got nothing (null)"),
        ([{"from": "gpt", "value": ""}], "message 1 of 'conversations' is an empty assistant turn: there is nothing to learn"),
        ([{"from": "hman", "value": "x"}], f"message 1 of 'conversations' has the unknown role 'hman': known are {ROLES}, human, gpt, chatgpt, bing, bard, model, function_call, tool_call, observation, function_response, tool_response; did you mean 'human'?"),
        ([{"from": "function_call", "value": "f(1)"}], "message 1 of 'conversations' is a string that is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ([{"from": "function_call", "value": "[]"}], "call 1 of message 1 of 'conversations' must be an object with 'name' and 'arguments', got an empty list"),
        ([{"from": "function_call", "value": 3}], "message 1 of 'conversations' must be a JSON string with a call, got int"),
        ([{"from": "human", "value": "x"}], "'conversations' has no turn of the role 'assistant' to learn, its roles are ['user']"),
    ],
)  # fmt: skip
def test_a_bad_sharegpt_conversation_is_explained_in_one_line(turns: Any, message: str) -> None:
    assert refusal("conversations", {"conversations": turns}) == message


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("f", "'tools' is a string that is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ({"name": "f"}, "'tools' must be a list of JSON schemas, or such a list as a string, got dict"),
        (0, "'tools' must be a list of JSON schemas, or such a list as a string, got int"),
        ([3], "tool 1 of 'tools' must be a JSON schema (an object), got int"),
        (["[]"], "tool 1 of 'tools' must be a JSON schema (an object), got an empty list"),
        ([{}], "tool 1 of 'tools' must be a JSON schema (an object), got an empty dict"),
        ("[" * 100_000, "'tools' is a string that is not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string)"),
        ("[" * 200 + "]" * 200, "'tools' is nested more than 100 levels deep"),
    ],
)  # fmt: skip
def test_bad_tools_are_explained_in_one_line(tools: Any, message: str) -> None:
    assert refusal("messages", {"messages": [USER, ANSWER], "tools": tools}) == message


def test_nesting_without_an_end_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    assert refusal("messages", {"messages": [USER, {**ANSWER, "extra": nested}]}) == (
        "message 2 of 'messages' is nested more than 100 levels deep"
    )
