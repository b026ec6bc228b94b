"""Where a conversation's tokens are cut: the quick way (added tokens part a text) against the slow one without such
knowledge, on tokenizers that make it hard: merges over the border, tokens that swallow spaces, spaces put in front.
"""

from itertools import accumulate, chain
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import ALPACA, CHATML, LLAMA3, MISTRAL, PHI3, ZEPHYR, byte_tokenizer, sentencepiece_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from relax.data import tokenize_row
from relax.data.chat.learning import ChatRenderer, Rendered
from relax.data.examples import Chat
from relax.data.tokens.drafts import Conversation
from relax.data.tokens.token_ids import TokenIds
from relax.errors import UserError

MERGES = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ċ", "h"), ("Ġ", "h"), (">", "Ċ")]


def swallowing(lstrip: bool, rstrip: bool) -> PreTrainedTokenizerFast:
    """Phi-3's way: its special tokens take the white space beside them with them."""
    tokenizer = byte_tokenizer(PHI3, merges=MERGES, eos_token="<|endoftext|>")
    names = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    core = tokenizer.backend_tokenizer
    fresh = Tokenizer(core.model)
    fresh.pre_tokenizer, fresh.decoder = core.pre_tokenizer, core.decoder
    fresh.add_special_tokens([AddedToken(name, lstrip=lstrip, rstrip=rstrip, special=True) for name in names])
    fresh.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=fresh, eos_token="<|endoftext|>", chat_template=PHI3)


def metaspace(scheme: Any) -> PreTrainedTokenizerFast:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "▁▁": 258, "▁h": 259}
    core = Tokenizer(models.BPE(vocab, [("▁", "▁")], byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=MISTRAL)


TOKENIZERS = {
    "chatml": byte_tokenizer(CHATML, eos_token="<|im_end|>", merges=MERGES),
    "chatml, GPT-2's pattern": byte_tokenizer(CHATML, eos_token="<|im_end|>"),
    "llama3": byte_tokenizer(LLAMA3, eos_token="<|eot_id|>", merges=MERGES),
    "alpaca, no added token at the border": byte_tokenizer(ALPACA, merges=MERGES),
    "zephyr": byte_tokenizer(ZEPHYR, merges=MERGES),
    "sentencepiece": sentencepiece_tokenizer(MISTRAL),
    "metaspace first": metaspace("first"),
    "metaspace always": metaspace("always"),
    "phi3": byte_tokenizer(PHI3, eos_token="<|endoftext|>", merges=MERGES),
    "phi3, swallows right": swallowing(False, True),
    "phi3, swallows left": swallowing(True, False),
    "phi3, swallows both": swallowing(True, True),
}


def slow(ids: TokenIds, rendered: Rendered) -> tuple[list[int], list[bool]]:
    """Whole prefixes decide; where they do not, the pieces' own tokens are taken."""
    [whole] = ids.tokenize([rendered.text])
    prefixes = ids.tokenize([rendered.text[:cut] for cut in rendered.cuts[:-1]])
    ends = [len(prefix) for prefix in prefixes]
    if any(whole[: len(prefix)] != prefix for prefix in prefixes):
        pieces = ids.tokenize(rendered.pieces)
        ends = [*accumulate(map(len, pieces[:-1]))]
        spoken, whole = whole, [*chain.from_iterable(pieces)]
        if ids.decode(whole) != ids.decode(spoken):
            raise UserError("cannot be cut")
    mask = np.repeat([False, True] * len(rendered.spans), np.diff([0, *ends, len(whole)]))
    return whole, [False, *mask[1:].tolist()]


_words = st.text(st.sampled_from("hé \n\t"), max_size=6)
_content = st.lists(_words | st.sampled_from(["<|im_end|>", "<|end|>", "</s>", "<s>", "hi"]), min_size=1, max_size=4)
_turns = st.lists(st.tuples(_content.map("".join), _content.map("".join)), min_size=1, max_size=3)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=_turns)
def test_the_quick_cut_is_the_slow_one(name: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = TokenIds(tokenizer)
    said = [*chain.from_iterable(turns)]
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
    try:
        rendered = ChatRenderer(tokenizer).learn(Chat(messages, [*range(1, len(messages), 2)]), "completion")
    except UserError:
        return  # an answer of white space, say: not what is looked at here
    draft = Conversation(ids, rendered)
    try:
        expected = slow(ids, rendered)
    except UserError:
        with pytest.raises(UserError):
            draft.sample(ids.tokenize(draft.texts))
        return
    sample = draft.sample(ids.tokenize(draft.texts))
    assert (sample.input_ids.tolist(), sample.loss_mask.tolist()) == expected


def test_only_what_follows_the_last_added_token_is_tokenized_twice() -> None:
    tokenizer = TOKENIZERS["chatml"]
    messages = [{"role": role, "content": role * 50} for role in ("user", "assistant") * 2]
    rendered = ChatRenderer(tokenizer).learn(Chat(messages, [1, 3]), "completion")
    draft = Conversation(TokenIds(tokenizer), rendered)
    assert draft.texts == [rendered.text, "<|im_start|>assistant\n", "<|im_end|>", "<|im_start|>assistant\n"]


@pytest.mark.parametrize("name", ["sentencepiece", "metaspace first", "metaspace always", "chatml", "zephyr"])
@pytest.mark.parametrize("completion", ["42", " 42", "\n4", "é"])
def test_a_completion_continues_its_prompt(name: str, completion: str) -> None:
    """SentencePiece puts a space before every text; learnt in the middle of one, generation would write it too."""
    tokenizer = TOKENIZERS[name]
    sample = tokenize_row({"prompt": "A:", "completion": completion}, tokenizer)
    whole = tokenizer("A:" + completion, add_special_tokens=False)["input_ids"]
    opening = TokenIds(tokenizer).opening
    assert sample.input_ids.tolist() == [*opening, *whole, tokenizer.eos_token_id]
    learnt = [number for number, mark in enumerate(sample.loss_mask.tolist()) if mark]
    assert learnt[0] == len(opening) + len(tokenizer("A:", add_special_tokens=False)["input_ids"])
    assert learnt == [*range(learnt[0], len(sample.input_ids))]
