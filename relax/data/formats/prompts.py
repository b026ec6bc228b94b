"""Prompts, with the completion to learn or without; Alpaca's instructions and bare text too. Knows no tokenizer."""

from relax.data.examples import Chat, Message, Prompt, Row, Text
from relax.data.formats.cells import kind, string, value
from relax.data.formats.messages import find_answers, read_conversation, read_turns
from relax.data.formats.tools import read_tools
from relax.errors import UserError

# As published with the data (github.com/tatsu-lab/stanford_alpaca): no space and no line end before the answer.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def read_text(row: Row) -> Text:
    """``text``, all of it learnt."""
    return Text(prompt="", completion=string(row, "text"))


def read_prompt_completion(row: Row) -> Text | Chat:
    """``prompt`` is read, ``completion`` is learnt: two strings, or two lists of messages."""
    if isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list):
        return _read_turns(row)
    return _learnable(Text(string(row, "prompt"), string(row, "completion")), "the completion")


def read_alpaca(row: Row) -> Text:
    """``output`` is learnt behind ``instruction`` and, if it is there and not empty, ``input``."""
    return _learnable(Text(alpaca_prompt(row), string(row, "output")), "the output")


def alpaca_prompt(row: Row) -> str:
    """What stands before the answer: ``instruction`` and, if there is one, ``input``, between Alpaca's own words."""
    context = string(row, "input") if row.get("input") is not None else ""
    template = _ALPACA_WITH_INPUT if context else _ALPACA
    return template.format(instruction=string(row, "instruction"), input=context)


def read_messages(row: Row) -> Chat:
    """``messages``, every assistant turn learnt."""
    messages = read_turns(row, "messages")
    return Chat(messages, find_answers(messages, "messages"), read_tools(row))


def read_conversations(row: Row) -> Chat:
    """``conversations`` as ShareGPT has them, every answer learnt."""
    messages = read_conversation(row, "conversations")
    return Chat(messages, find_answers(messages, "conversations"), read_tools(row))


def read_prompt(row: Row) -> Prompt:
    """``prompt``, to be answered: a string that is not empty, or messages of which the last is no answer."""
    prompt = value(row, "prompt")
    if isinstance(prompt, list):
        return Prompt(_asking(read_turns(row, "prompt")), read_tools(row))
    if not isinstance(prompt, str) or not prompt:
        raise UserError(f"'prompt' must be a string or a list of messages, got {kind(prompt)}")
    return Prompt(prompt)


def _read_turns(row: Row) -> Chat:
    prompt, completion = read_turns(row, "prompt"), read_turns(row, "completion")
    answers = find_answers(completion, "completion", offset=len(prompt))
    return Chat([*prompt, *completion], answers, read_tools(row))


def _asking(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        raise UserError("'prompt' ends with an assistant turn: a prompt ends before the answer")
    return messages


def _learnable(text: Text, name: str) -> Text:
    if not text.completion:
        raise UserError(f"{name} is empty: there is nothing to learn")
    return text
