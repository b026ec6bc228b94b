"""Tokenizers made in memory: one token a byte, a few merges, the special tokens of a family of chat models.

The families' chat templates are written out in ``chat_templates``: each writes what the published one writes, and marks
its answers besides. The published ones have no such marks (nor have the constants below).
"""
# ruff: noqa: RUF001  (DeepSeek's special tokens)

import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def chat_template(family: str, *, marked: bool = False) -> str:
    """The family's template, with or without ``{% generation %}`` markers."""
    text = (Path(__file__).parent / "chat_templates" / f"{family}.jinja").read_text(encoding="utf-8")
    return text if marked else re.sub(r"\{% (end)?generation %\}", "", text)


CHATML, LLAMA3, GEMMA, ZEPHYR, MISTRAL, PHI3, ALPACA, QWEN3 = (
    chat_template(family) for family in ("chatml", "llama3", "gemma", "zephyr", "mistral", "phi3", "alpaca", "qwen3")
)

# Of each family: its bos and eos token, and its other special tokens.
_CHATML_TOKENS = (None, "<|im_end|>", "<|im_start|>")
_LLAMA_TOKENS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
_GEMMA_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_PHI_TOKENS = (None, "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_HARMONY_TOKENS = (None, "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
_DEEPSEEK_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
FAMILIES: dict[str, tuple[str | None, ...]] = {
    "chatml": _CHATML_TOKENS,
    "llama3": _LLAMA_TOKENS,
    "llama3_1": _LLAMA_TOKENS,
    "gemma": _GEMMA_TOKENS,
    "gemma3": _GEMMA_TOKENS,
    "mistral": ("<s>", "</s>"),
    "mistral_v3": ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    "phi3": _PHI_TOKENS,
    "phi4": (*_CHATML_TOKENS, "<|im_sep|>"),
    "phi4_mini": _PHI_TOKENS,
    "qwen2_5": _CHATML_TOKENS,
    "qwen3": (*_CHATML_TOKENS, "<think>", "</think>"),
    "zephyr": ("<s>", "</s>"),
    "alpaca": ("<s>", "</s>"),
    "deepseek_v3": _DEEPSEEK_TOKENS,
    "gpt_oss": _HARMONY_TOKENS,
}
# What a tokenizer with one of these templates knows, whatever its own eos token is.
_SPECIAL = {
    chat_template(family): tuple(filter(None, [*special, eos])) for family, (_, eos, *special) in FAMILIES.items()
}


def family_tokenizer(family: str, *, marked: bool = False) -> PreTrainedTokenizerFast:
    """A byte tokenizer with the chat template and the special tokens of a family."""
    bos, eos, *special = FAMILIES[family]
    template = chat_template(family, marked=marked)
    return byte_tokenizer(template, special=tuple(filter(None, special)), bos_token=bos, eos_token=eos)


def byte_tokenizer(
    template: str | None = None,
    *,
    merges: list[tuple[str, str]] | None = None,
    special: tuple[str, ...] = (),
    adds_bos: bool = False,
    **named: str | None,
) -> PreTrainedTokenizerFast:
    """One token a byte, plus ``merges`` (in byte-level spelling: "Ċ" is a newline, "Ġ" a space)."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **named}
    vocab = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges or []:
        vocab.setdefault(left + right, len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges or []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    core.decoder = decoders.ByteLevel()
    return _wrapped(core, template, (*_SPECIAL.get(template or "", ()), *special), adds_bos=adds_bos, names=names)


def sentencepiece_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Llama 2's way: a "▁" before every text, spaces as "▁", unknown characters as bytes."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(core, template, (), adds_bos=True, names={"bos_token": "<s>", "eos_token": "</s>"})


def _wrapped(
    core: Tokenizer, template: str | None, special: tuple[str, ...], *, adds_bos: bool, names: dict[str, str | None]
) -> PreTrainedTokenizerFast:
    core.add_special_tokens([*dict.fromkeys([name for name in names.values() if name] + [*special])])
    if adds_bos:
        bos = core.token_to_id(str(names["bos_token"]))
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, **{name: value for name, value in names.items() if value}
    )
    tokenizer.chat_template = template
    return tokenizer
