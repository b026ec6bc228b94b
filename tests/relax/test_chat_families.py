"""What is learnt of a conversation under the chat template of each family of models, as literal text.

Read and learnt text are compared whole: ``⟦`` and ``⟧`` stand around what is learnt. The templates are in
``chat_templates``; what each expects was written down from the family's own documentation of its format.
"""
# ruff: noqa: E501, RUF001  (literal conversations)

from datetime import datetime
from itertools import groupby
from typing import Any

import pytest
from byte_tokenizers import FAMILIES, chat_template, family_tokenizer
from tool_loop import CALL, TOOL_LOOP
from transformers import PreTrainedTokenizerFast

from relax.data import EncodingOptions, tokenize_row
from relax.errors import UserError

SYSTEM = {"role": "system", "content": "Be brief."}
TWO_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "Tells the time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
        },
    }
]
SCHEMA = '{"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}}'
QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures "
    'within <tools></tools> XML tags:\n<tools>\n{"type": "function", "function": '
    + SCHEMA
    + "}\n</tools>\n\nFor each function "
    "call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def gpt_oss_system(tools: str = "") -> str:
    return (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
        f"Current date: {datetime.now():%Y-%m-%d}\n\nReasoning: medium\n\n"
        f"# Valid channels: analysis, commentary, final. Channel must be included for every message.{tools}<|end|>"
    )


def learn(family: str, messages: list[dict[str, Any]], *, marked: bool = False, **row: Any) -> str:
    """The row's text with what is learnt of it marked; ``train_on`` may be among ``row``."""
    options = EncodingOptions(train_on=row.pop("train_on", "completion"))
    return learnt(family_tokenizer(family, marked=marked), {"messages": messages, **row}, options)


def learnt(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], options: EncodingOptions) -> str:
    sample = tokenize_row(row, tokenizer, options)
    pairs = zip(sample.input_ids.tolist(), sample.loss_mask.tolist(), strict=True)
    texts = [
        (mask, tokenizer.decode([token for token, _ in run])) for mask, run in groupby(pairs, key=lambda pair: pair[1])
    ]
    return "".join(f"⟦{text}⟧" if mask else text for mask, text in texts)


# Of each family: a system turn and two turns of user and assistant.
CONVERSATIONS = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello.<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦4<|eot_id|>⟧",
    "llama3_1": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello.<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦4<|eot_id|>⟧",
    "gemma3": "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello.<end_of_turn>⟧\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n⟦4<end_of_turn>⟧",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST]⟦ Hello.</s>⟧ [INST] 2+2? [/INST]⟦ 4</s>⟧",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello.<|end|>⟧\n"
    "<|user|>\n2+2?<|end|>\n<|assistant|>\n⟦4<|end|>\n<|endoftext|>⟧",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
    "<|im_start|>assistant<|im_sep|>⟦Hello.<|im_end|>⟧<|im_start|>user<|im_sep|>2+2?<|im_end|><|im_start|>assistant<|im_sep|>⟦4<|im_end|>⟧",
    "phi4_mini": "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>⟦Hello.<|end|>⟧<|user|>2+2?<|end|><|assistant|>⟦4<|end|><|endoftext|>⟧",
    "qwen2_5": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n⟦Hello.</s>⟧\n<|user|>\n2+2?</s>\n<|assistant|>\n⟦4</s>⟧",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n⟦Hello.</s>⟧\n\n### Instruction:\n2+2?\n\n### Response:\n⟦4</s>⟧",
    "deepseek_v3": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>⟦Hello.<｜end▁of▁sentence｜>⟧"
    "<｜User｜>2+2?<｜Assistant｜>⟦4<｜end▁of▁sentence｜>⟧",
}  # fmt: skip
# The same without a system turn, where that is more than leaving it out.
WITHOUT_SYSTEM = {
    "gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello.<end_of_turn>⟧\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n⟦4<end_of_turn>⟧",
    "mistral_v3": "<s>[INST] Hi[/INST]⟦ Hello.</s>⟧[INST] 2+2?[/INST]⟦ 4</s>⟧",
    "qwen2_5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nHi\n\n### Response:\n⟦Hello.</s>⟧\n\n### Instruction:\n2+2?\n\n### Response:\n⟦4</s>⟧",
}  # fmt: skip
# Families that rewrite earlier answers: only the last answer can be learnt, unless markers say what is.
REWRITING = {
    "qwen3": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\n4<|im_end|>⟧",
    "gpt_oss": gpt_oss_system() + "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|>"
    "<|start|>user<|message|>Hi<|end|><|start|>assistant⟦<|channel|>final<|message|>Hello.<|end|>⟧"
    "<|start|>user<|message|>2+2?<|end|><|start|>assistant⟦<|channel|>final<|message|>4<|return|>⟧",
}  # fmt: skip
ALL: list[tuple[str, list[dict[str, Any]], str]] = [
    *((family, [SYSTEM, *TWO_TURNS], text) for family, text in CONVERSATIONS.items()),
    *((family, TWO_TURNS, text) for family, text in WITHOUT_SYSTEM.items()),
    *((family, [SYSTEM, *TWO_TURNS], text) for family, text in REWRITING.items()),
]
# Of each family that knows tools: a call, its result and the answer.
TOOL_CONVERSATIONS = {
    "llama3_1": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with "
    "a JSON for a function call with its proper arguments that best answers the given prompt.\n\nRespond in the format {\"name\": function name, "
    "\"parameters\": dictionary of argument name and its value}.Do not use variables.\n\n{\n    \"type\": \"function\",\n    \"function\": {\n"
    "        \"name\": \"clock\",\n        \"description\": \"Tells the time.\",\n        \"parameters\": {\n            \"type\": \"object\",\n"
    "            \"properties\": {\n                \"zone\": {\n                    \"type\": \"string\"\n                }\n            },\n"
    "            \"required\": [\n                \"zone\"\n            ]\n        }\n    }\n}\n\nTime?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦{\"name\": \"clock\", \"parameters\": {\"zone\": \"UTC\"}}<|eot_id|>⟧"
    "<|start_header_id|>ipython<|end_header_id|>\n\n\"12:00\"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Noon.<|eot_id|>⟧",
    "mistral_v3": "<s>[AVAILABLE_TOOLS] [{\"type\": \"function\", \"function\": " + SCHEMA + "}][/AVAILABLE_TOOLS][INST] Time?[/INST]"
    "⟦[TOOL_CALLS] [{\"name\": \"clock\", \"arguments\": {\"zone\": \"UTC\"}, \"id\": \"call00001\"}]</s>⟧"
    "[TOOL_RESULTS] {\"content\": 12:00, \"call_id\": \"call00001\"}[/TOOL_RESULTS]⟦ Noon.</s>⟧",
    "qwen2_5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n" + QWEN_TOOLS + "<|im_end|>\n"
    "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n⟦<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call><|im_end|>⟧\n"
    "<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Noon.<|im_end|>⟧",
    "gpt_oss": gpt_oss_system("\nCalls to these tools must go to the commentary channel: 'functions'.")
    + "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n// Tells the time.\ntype clock = (_: {\nzone: string,\n}) => any;\n\n"
    "} // namespace functions<|end|><|start|>user<|message|>Time?<|end|>"
    "<|start|>assistant⟦ to=functions.clock<|channel|>commentary json<|message|>{\"zone\": \"UTC\"}<|call|>⟧"
    "<|start|>functions.clock to=assistant<|channel|>commentary<|message|>\"12:00\"<|end|><|start|>assistant⟦<|channel|>final<|message|>Noon.<|return|>⟧",
}  # fmt: skip
DEEPSEEK_TOOL_LOOP = (
    "<｜begin▁of▁sentence｜><｜User｜>Time?<｜Assistant｜>⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n"
    '```json\n{"zone": "UTC"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>⟧<｜tool▁outputs▁begin｜>'
    "<｜tool▁output▁begin｜>12:00<｜tool▁output▁end｜><｜tool▁outputs▁end｜>⟦Noon.<｜end▁of▁sentence｜>⟧"
)


def last_only(text: str) -> str:
    """The text with nothing but its last answer learnt."""
    read, answer = text.rsplit("⟦", 1)
    return read.replace("⟦", "").replace("⟧", "") + "⟦" + answer


def test_every_family_is_proved() -> None:
    assert {family for family, _, _ in ALL} == FAMILIES.keys()


@pytest.mark.parametrize("marked", [False, True], ids=["published", "marked"])
@pytest.mark.parametrize(("family", "messages", "text"), ALL)
def test_answers_with_their_end_of_turn(family: str, messages: list[dict[str, Any]], text: str, marked: bool) -> None:
    assert learn(family, messages, marked=marked, train_on="last") == last_only(text)
    if family in REWRITING and not marked:
        with pytest.raises(UserError, match="is not stable at message 3: .* --train_on=last, or give another template"):
            learn(family, messages)
    else:
        assert learn(family, messages, marked=marked) == text
    one_answer = text[: text.index("⟧") + 1]
    if family not in REWRITING and not family.startswith("phi"):  # their last answer differs, or ends otherwise
        assert learn(family, messages[:-2], marked=marked) == one_answer


@pytest.mark.parametrize(("family", "messages", "text"), ALL)
def test_all_tokens_but_the_first(family: str, messages: list[dict[str, Any]], text: str) -> None:
    tokenizer = family_tokenizer(family)
    plain = text.replace("⟦", "").replace("⟧", "")
    first = tokenizer.decode(tokenizer(plain, add_special_tokens=False)["input_ids"][:1])
    assert learn(family, messages, train_on="all") == f"{first}⟦{plain.removeprefix(first)}⟧", (
        "nothing predicts the first"
    )


@pytest.mark.parametrize(("family", "messages", "text"), ALL)
def test_an_answer_is_learnt_from_where_generation_begins(
    family: str, messages: list[dict[str, Any]], text: str
) -> None:
    tokenizer = family_tokenizer(family)
    sample = tokenize_row({"messages": messages}, tokenizer, EncodingOptions(train_on="last"))
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]

    assert sample.input_ids.tolist() == whole[: len(sample.input_ids)], "the ids are the template's own"
    assert tokenizer.decode(whole[len(sample.input_ids) :]).strip() == ""
    assert sample.loss_mask.tolist() == [False] * len(asked) + [True] * (len(sample.input_ids) - len(asked))
    assert sample.input_ids[: len(asked)].tolist() == asked


@pytest.mark.parametrize("marked", [False, True], ids=["published", "marked"])
@pytest.mark.parametrize(("family", "text"), TOOL_CONVERSATIONS.items())
def test_calls_are_learnt_and_results_are_not(family: str, text: str, marked: bool) -> None:
    assert learn(family, TOOL_LOOP, tools=TOOLS, marked=marked) == text
    assert learn(family, TOOL_LOOP, tools=TOOLS, marked=marked, train_on="last") == last_only(text)
    call = text[: text.index("⟧") + 1]
    assert learn(family, TOOL_LOOP[:2], tools=TOOLS, marked=marked) == call, "a row may end with a call"


@pytest.mark.parametrize("arguments", [{"zone": "UTC"}, '{"zone": "UTC"}'], ids=["object", "string"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=["no content", "None", "empty"])
@pytest.mark.parametrize("family", ["qwen2_5", "deepseek_v3", "gpt_oss"])
def test_a_call_may_be_spelled_as_any_data_set_does(family: str, content: dict[str, Any], arguments: Any) -> None:
    """Qwen wants objects as arguments, DeepSeek strings and the content None, gpt-oss no content."""
    call = {**CALL, "function": {"name": "clock", "arguments": arguments}}
    messages = [TOOL_LOOP[0], {"role": "assistant", "tool_calls": [call], **content}, *TOOL_LOOP[2:]]
    if family == "deepseek_v3":
        assert learn(family, messages) == DEEPSEEK_TOOL_LOOP
    else:
        assert learn(family, messages, tools=TOOLS) == TOOL_CONVERSATIONS[family]


def test_qwen_writes_neighbouring_results_and_parallel_calls_together() -> None:
    messages = [
        TOOL_LOOP[0],
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
        TOOL_LOOP[2],
        *TOOL_LOOP[2:],
    ]
    call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
    assert learn("qwen2_5", messages).endswith(
        f"<|im_start|>assistant\n⟦I look.\n{call}\n{call}<|im_end|>⟧\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response>\n"
        "<tool_response>\n12:00\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Noon.<|im_end|>⟧"
    )


def test_qwen3_learns_a_tool_loop_whose_call_was_thought_about() -> None:
    """Thinking of the turns after the last question stays, whatever follows; an empty one comes and goes."""
    thinking = {**TOOL_LOOP[1], "reasoning_content": "I need a clock."}
    call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>'
    assert learn("qwen3", [TOOL_LOOP[0], thinking, *TOOL_LOOP[2:]], tools=TOOLS) == (
        f"<|im_start|>system\n{QWEN_TOOLS}<|im_end|>\n<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n"
        f"⟦<think>\nI need a clock.\n</think>\n\n{call}⟧\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nNoon.<|im_end|>⟧"
    )
    with pytest.raises(UserError, match="is not stable at message 2"):
        learn("qwen3", TOOL_LOOP, tools=TOOLS)
    read = f"<|im_start|>assistant\n{call}\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n"
    last = learn("qwen3", TOOL_LOOP, tools=TOOLS, train_on="last")
    assert last.endswith(read + "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nNoon.<|im_end|>⟧")


def test_qwen3_learns_the_thinking_of_the_last_answer() -> None:
    inside = {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello."}
    beside = {"role": "assistant", "content": "Hello.", "reasoning_content": "well"}
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\nwell\n</think>\n\nHello.<|im_end|>⟧"
    assert learn("qwen3", [TWO_TURNS[0], inside]) == text
    assert learn("qwen3", [TWO_TURNS[0], beside]) == text
    earlier = learn("qwen3", [TWO_TURNS[0], inside, *TWO_TURNS[2:]], train_on="last")
    assert "well" not in earlier, "generation would not see the earlier thought either"


def test_gpt_oss_learns_the_thought_of_the_last_answer() -> None:
    thoughtful = {"role": "assistant", "content": "Hello.", "thinking": "Greet."}
    assert learn("gpt_oss", [TWO_TURNS[0], thoughtful]) == (
        gpt_oss_system()
        + "<|start|>user<|message|>Hi<|end|><|start|>assistant⟦<|channel|>analysis<|message|>Greet.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello.<|return|>⟧"
    )


def test_a_thought_of_an_answer_that_is_only_read_may_be_left_out() -> None:
    thoughtful = {**TWO_TURNS[1], "reasoning_content": "well"}
    text = learn("llama3", [TWO_TURNS[0], thoughtful, *TWO_TURNS[2:]], train_on="last")
    assert text == learn("llama3", TWO_TURNS, train_on="last")


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n<|im_start|>assistant\n⟦4<|im_end|>⟧"),
        ("phi3", "<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello.<|end|>⟧\n<|assistant|>\n⟦4<|end|>\n<|endoftext|>⟧"),
        ("zephyr", "<|user|>\nHi</s>\n<|assistant|>\n⟦Hello.</s>⟧\n<|assistant|>\n⟦4</s>⟧"),
        ("gemma", "Conversation roles must alternate"),
        ("mistral", "conversation roles must alternate"),
        ("qwen3", "is not stable at message 2"),
        ("gpt_oss", "is not stable at message 2"),
    ],
    ids=lambda value: value if value in FAMILIES else "",
)  # fmt: skip
def test_two_answers_in_a_row(family: str, text: str) -> None:
    messages = [*TWO_TURNS[:2], TWO_TURNS[3]]
    if "⟦" in text:
        assert learn(family, messages) == text
    else:
        with pytest.raises(UserError, match=text):
            learn(family, messages)


def test_two_answers_under_one_header_are_cut_where_generation_stops() -> None:
    """Phi-4 writes the header behind the question, so a second answer follows the first one's end."""
    text = learn("phi4", [*TWO_TURNS[:2], TWO_TURNS[3]])
    assert text == "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>⟦Hello.<|im_end|>4<|im_end|>⟧"


@pytest.mark.parametrize(
    ("family", "messages", "row", "expected"),
    [
        ("mistral_v3", [SYSTEM, *TWO_TURNS[:2]], {}, "leaves out message 1, of the role 'system'; give another template"),
        ("gemma", [SYSTEM, *TWO_TURNS], {}, "fails on these messages: System role not supported"),
        ("phi4", [TOOL_LOOP[0], {"role": "assistant", "content": "clock()"}, *TOOL_LOOP[2:]], {}, "leaves out message 3, of the role 'tool'"),
        ("zephyr", [{"role": "developer", "content": "Be brief."}, *TWO_TURNS], {}, "leaves out message 1, of the role 'developer'"),
        ("phi3", [TOOL_LOOP[0], {**TOOL_LOOP[1], "content": "I look."}], {}, "leaves out a tool call of message 2"),
        ("chatml", TOOL_LOOP, {}, "fails on these messages, which call tools: "),
        ("llama3_1", [TOOL_LOOP[0], {**TOOL_LOOP[1], "content": "I look."}, *TOOL_LOOP[2:]], {}, "leaves out what message 2 says beside its tool calls"),
        ("llama3", [TWO_TURNS[0], {**TWO_TURNS[1], "reasoning_content": "well"}], {}, "leaves out the thought of message 2; give another template"),
        ("deepseek_v3", [TWO_TURNS[0], {"role": "assistant", "content": "<think>well</think>Hello."}], {}, "leaves out the thought of message 2"),
        ("gpt_oss", [TOOL_LOOP[0], {"role": "assistant", "tool_calls": [CALL, CALL]}], {"tools": TOOLS}, "leaves out a tool call of message 2"),
        ("llama3_1", [TOOL_LOOP[0], {"role": "assistant", "tool_calls": [CALL, CALL]}], {}, "only supports single tool-calls at once"),
        ("mistral_v3", [TOOL_LOOP[0], {"role": "assistant", "tool_calls": [{**CALL, "id": "1"}]}], {}, "Tool call IDs should be alphanumeric"),
        ("deepseek_v3", TOOL_LOOP, {"tools": TOOLS}, "does not show the row's tools to the model; give another template"),
        ("llama3_1", [SYSTEM, *TWO_TURNS[1:]], {"tools": TOOLS}, "there's no first user message"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_say_is_refused(
    family: str, messages: list[dict[str, Any]], row: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        learn(family, messages, **row)
    assert expected in str(error.value)
    assert str(error.value).startswith("data:row 1: the chat template")
    assert "\n" not in str(error.value)


def test_a_forced_thought_that_no_answer_begins_with_is_refused() -> None:
    """DeepSeek R1's generation prompt opens a thought, and its template takes the thoughts out of the answers."""
    tokenizer = family_tokenizer("deepseek_v3")
    prompt, thinking = "{{- '<｜Assistant｜>' -}}\n{%- endif -%}", "{{- '<｜Assistant｜><think>\\n' -}}\n{%- endif -%}"
    tokenizer.chat_template = chat_template("deepseek_v3").replace(prompt, thinking)
    for train_on in ("completion", "last"):
        with pytest.raises(
            UserError, match=r"writes 'ssistant｜><think>\\n' where .* has 'ssistant｜>Hello\."
        ) as error:
            tokenize_row({"messages": TWO_TURNS[:2]}, tokenizer, EncodingOptions(train_on=train_on))
        assert "--train_on=last" not in str(error.value), "it would not help"
