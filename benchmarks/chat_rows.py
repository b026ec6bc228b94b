"""Rows of chat and a tokenizer to measure with: English that every Python carries (the text of its ``help()``).

A real vocabulary is larger and real chats are more varied, so absolute speeds differ from those on real data.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from transformers import PreTrainedTokenizerFast

SEED = 0
VOCABULARY = 16_384
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED_CHATML = re.sub(r"{% (end)?generation %}", "", CHATML)


def paragraphs() -> list[str]:
    """2,300 paragraphs of 200 characters in the mean."""
    found = re.split(r"\n\s*\n", "\n\n".join(topics.values()))
    return [paragraph.strip() for paragraph in found if len(paragraph.strip()) > 20]


def conversations(count: int) -> Iterator[list[dict[str, str]]]:
    """One to three turns of a question of one paragraph and an answer of one to four."""
    rng, text = random.Random(SEED), paragraphs()
    for _ in range(count):
        turns = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            turns.append({"role": "user", "content": rng.choice(text)})
            turns.append({"role": "assistant", "content": "\n\n".join(rng.choices(text, k=rng.randint(1, 4)))})
        yield turns


def as_messages(turns: list[dict[str, str]]) -> dict[str, Any]:
    return {"messages": turns}


def as_prompt_completion(turns: list[dict[str, str]]) -> dict[str, Any]:
    return {"prompt": turns[0]["content"] + "\n", "completion": turns[1]["content"]}


ROWS = {"messages": as_messages, "prompt_completion": as_prompt_completion}


def write_rows(path: Path, count: int, shape: str) -> None:
    """A JSONL file of ``count`` rows of one of :data:`ROWS`."""
    with path.open("w") as file:
        file.writelines(json.dumps(ROWS[shape](turns)) + "\n" for turns in conversations(count))


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2 and all its heirs; the text gives some 6,600 entries."""
    from tokenizers import ByteLevelBPETokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(paragraphs(), vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
