"""Load a causal language model and its tokenizer, from a local folder or from the Hugging Face hub.

Not here: adapters (``relax.lora``), saving (``relax.export``), the small built-in models. Weights are read from
safetensors only, never unpickled. transformers is imported on first use.
"""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from relax.errors import UserError
from relax.hub import hub_arguments, local_folder, one_line_errors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]

# A conversation that shows how a chat template ends an answer.
_TURNS = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": "An answer."}]


def load_model(
    name_or_path: str,
    *,
    dtype: DType | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantize: Literal["4bit"] | None = None,
) -> "PreTrainedModel":
    """The causal language model of a folder or of a hub repository, in evaluation mode.

    Args:
        name_or_path: An existing folder, or a hub name such as ``org/name``.
        dtype: Of the weights; by default float32. One AdamW update is about the learning rate, often a thousandth of a
            weight and less, while bfloat16 values lie 1/256 to 1/128 apart: weights trained in bfloat16 lose updates
            to rounding. Mixed precision (``--precision=bf16-mixed``) computes in bfloat16 on the float32 weights.
            Weights that LoRA keeps frozen lose nothing in ``bfloat16`` (the adapter stays float32) and take half the
            memory; with ``quantize`` it is the default for what is not quantized. ``auto``: the stored type.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; by default what transformers picks.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Run the Python code that comes with the model.
        quantize: ``4bit`` stores the linear layers as NF4 with double quantization (QLoRA, arXiv 2305.14314) on the
            CUDA device of this process; only an adapter can be trained on it.

    Raises:
        UserError: It is not found or not readable, has no safetensors, lacks weights of its architecture, is not a
            causal language model, or a setting is not available on this machine.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = hub_arguments(name_or_path, revision, trust_remote_code)
    settings = loading_settings(dtype, attn_implementation, quantize)
    folder = local_folder(name_or_path)
    if folder is not None:
        check_folder(folder)
    with one_line_errors(f"--model={name_or_path}", name_or_path):
        config = AutoConfig.from_pretrained(**source)
    _check_kind(config, name_or_path)
    with one_line_errors(f"--model={name_or_path}", name_or_path):
        model, report = AutoModelForCausalLM.from_pretrained(config=config, **source, **settings)
    check_report(report, name_or_path)
    return model


def load_tokenizer(
    name_or_path: str,
    *,
    chat_template: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or of a hub repository, exactly as it is stored there but for ``chat_template``.

    Args:
        name_or_path: An existing folder, or a hub name such as ``org/name``.
        chat_template: A file that holds a Jinja chat template, or the template itself; replaces the tokenizer's own.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Run the Python code that comes with the tokenizer.

    Raises:
        UserError: It is not found or not readable, has no end-of-sequence token, or the template is not valid.
    """
    from transformers import AutoTokenizer

    source = hub_arguments(name_or_path, revision, trust_remote_code)
    with one_line_errors(f"the tokenizer of {name_or_path}", name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(**source)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name_or_path} has no end-of-sequence token, so that training cannot teach the model to "
            'stop; set "eos_token" in its tokenizer_config.json to the token that ends a text'
        )
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
        _check_template(tokenizer)
    return tokenizer


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token id that fills up rows: the pad token, else the end-of-sequence token, else 0.

    Which one does not matter: ReLax masks padding by its position, never by its id. The tokenizer stays as it is.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token ids that end a completion: end of sequence, and the end of an assistant's turn in the chat template.

    The two differ for many models (``<|endoftext|>`` and ``<|im_end|>``), and a fine-tuned chat emits the second.
    """
    stops = (tokenizer.eos_token_id, _end_of_turn(tokenizer))
    return list(dict.fromkeys(token for token in stops if token is not None))


def check_vocabulary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer whose ids have no row in the model's embedding.

    Added tokens that neither end a text nor occur in the chat template only draw a warning: some published text models
    share the tokenizer of a larger sibling and lack the rows of its image tokens.

    Raises:
        UserError: Names both sizes.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return
    unused = set(tokenizer.get_added_vocab()) - {tokenizer.eos_token, tokenizer.pad_token}
    template = str(tokenizer.chat_template)
    needed = [token for token in beyond if token not in unused or token in template]
    sizes = f"the tokenizer has ids up to {max(beyond.values())}, but the model's embedding has only {rows} rows"
    if needed:
        raise UserError(f"{sizes} (first without a row: {needed[0]}); use the tokenizer that belongs to --model")
    warnings.warn(f"{sizes}; a text that contains {', '.join(sorted(beyond)[:3])} cannot be trained on", stacklevel=2)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of weights, shared ones counted once: (all, those that are trained)."""
    total = trainable = 0
    for parameter in model.parameters():
        # 4-bit weights are packed two to a byte.
        count = parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def loading_settings(dtype: str | None, attn_implementation: str | None, quantize: str | None) -> dict[str, Any]:
    """The keywords of ``from_pretrained`` that say how to load the weights; a report comes with the model.

    Raises:
        UserError: No such type, or no quantization on this machine.
    """
    if dtype is not None and dtype not in get_args(DType):
        raise UserError(f"--dtype must be one of {', '.join(get_args(DType))}, got {dtype}")
    settings: dict[str, Any] = {
        "dtype": dtype or ("bfloat16" if quantize else "float32"),
        "use_safetensors": True,
        # Weights of another shape, and missing ones, come back in a report, and check_report refuses them.
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    if attn_implementation is not None:
        settings["attn_implementation"] = attn_implementation
    return settings | (_four_bits(quantize) if quantize else {})


def _four_bits(quantize: str) -> dict[str, Any]:
    if quantize != "4bit":
        raise UserError(f"--quantize must be 4bit, got {quantize}; drop it for full precision")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--quantize=4bit needs bitsandbytes; pip install 'relax-trainers[quantization]' or drop it")
    if not torch.cuda.is_available():
        raise UserError("--quantize=4bit needs a CUDA device and none is available here; drop it")
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # One process a device: Lightning and torchrun say which in LOCAL_RANK, before any process group exists.
    return {"quantization_config": quantization, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model of its own, before anything is read.

    Raises:
        UserError: It holds an adapter, no configuration, or pickled weights only.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter; give its base model as --model and add --adapter={folder}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json, so it is no Hugging Face model; give another --model")
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has only pickled weights (*.bin), and reading a pickle can run code; if you trust them, convert "
            f"once with transformers: AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}')"
        )


def _check_kind(config: "PreTrainedConfig", name: str) -> None:
    """Refuse what AutoModelForCausalLM has no class for, or has one only to run an encoder as a decoder."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    values = config.to_dict()
    if "AutoModelForCausalLM" in values.get("auto_map", {}):
        return
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not values.get("is_decoder", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or encoder or values.get("is_encoder_decoder", False):
        raise UserError(
            f"--model={name} is a {config.model_type} model, which does not generate text from left to right; give a "
            "causal language model such as Llama, Qwen or GPT-2"
        )


def check_report(report: dict[str, Any], name: str, *, beside: str = "") -> None:
    """Refuse weights that are not there: transformers would draw them at random and go on.

    Args:
        report: What came back with the model.
        name: Of the model.
        beside: Where a module's weights may be missing, its name.

    Raises:
        UserError: Names the first of them.
    """
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    missing = [key for key in missing if not beside or not key.startswith(f"{beside}.")]
    if mismatched:
        key, stored, expected = mismatched[0]
        raise UserError(
            f"--model={name}: {key} has the shape {tuple(stored)} in the file, but config.json asks for "
            f"{tuple(expected)}; the two are not of the same model"
        )
    if missing:
        body = "its architecture" if beside else "a causal language model"
        head = "" if beside else ", with its language modeling head"
        raise UserError(
            f"--model={name} lacks {len(missing)} weights of {body}, such as {missing[0]}; give a complete one{head}"
        )


def _read_template(chat_template: str) -> str:
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise UserError(f"--chat_template={chat_template} is neither a file nor a Jinja template such as {{{{ ... }}}}")
    return path.read_text(encoding="utf-8")


def _check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        tokenizer.apply_chat_template(_TURNS, tokenize=False)
    except TemplateSyntaxError as error:
        raise UserError(f"--chat_template is no valid Jinja template: line {error.lineno}: {error.message}") from None
    except TemplateError:
        pass  # it is well-formed; a template may refuse conversations, this one included


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The added token that follows an assistant's answer in the chat template, if there is one."""
    from jinja2 import TemplateError

    if not isinstance(tokenizer.chat_template, str):
        return None
    try:
        text = tokenizer.apply_chat_template(_TURNS, tokenize=False)
    except TemplateError:
        return None
    _, answer, rest = text.rpartition(_TURNS[-1]["content"])
    following = tokenizer(rest, add_special_tokens=False).input_ids if answer else []
    return following[0] if following and following[0] in tokenizer.added_tokens_decoder else None
