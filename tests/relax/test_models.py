"""Loading: what is stored is what comes back, and what cannot be trained on is refused in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from byte_tokenizers import CHATML, GEMMA, LLAMA3, MISTRAL, ZEPHYR, byte_tokenizer
from tiny_models import VOCABULARY, logits, refused, tiny_model
from transformers import BertConfig, BertForMaskedLM, LlamaModel, T5Config, T5ForConditionalGeneration

from relax.models import check_vocabulary, count_parameters, load_model, load_tokenizer, pad_id, stop_ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a byte tokenizer, saved."""
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer(CHATML).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_a_saved_model_comes_back(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


def test_sharded_weights_come_back(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(str(tmp_path))), logits(model))


def test_weights_are_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32
    assert load_model(str(tmp_path), dtype="auto").dtype == torch.bfloat16
    assert load_model(str(tmp_path), dtype="float64").dtype == torch.float64
    with refused("--dtype", "float8"):
        load_model(str(tmp_path), dtype="float8")  # type: ignore[arg-type]


def test_attention_implementation_is_passed_on(folder: Path) -> None:
    assert load_model(str(folder), attn_implementation="eager").config._attn_implementation == "eager"
    with refused("nonsense", "eager"):
        load_model(str(folder), attn_implementation="nonsense")


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "nothing/", "~/no such folder", ""])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_path_that_does_not_exist(load: Callable[[str], object], name: str) -> None:
    with refused(f"'{name}' does not exist"):
        load(name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with refused("is a file"):
        load_model(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["org/name-that-is-not-cached", "not a name", "-x"])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_name_that_cannot_be_had(load: Callable[[str], object], name: str) -> None:
    with refused(name, "check the name, the connection"):  # the tests run with HF_HUB_OFFLINE=1
        load(name)


def test_a_revision_of_a_folder_draws_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match="--revision=main has no effect"):
        load_model(str(folder), revision="main")


def test_a_folder_without_a_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    with refused("no config.json"):
        load_model(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with refused("holds an adapter", f"--adapter={folder}"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with refused("*.bin", "save_pretrained"):
        load_model(str(folder))


@pytest.mark.parametrize("keep", [0, 4, 2000])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with refused("SafetensorError", str(folder)):
        load_model(str(folder))


def test_a_missing_shard(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="10KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with refused("00002-of"):
        load_model(str(tmp_path))


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_and_config_that_do_not_belong_together(folder: Path) -> None:
    change(folder, num_hidden_layers=3)
    with refused("lacks 9 weights", "model.layers.2"):
        load_model(str(folder))
    change(folder, num_hidden_layers=2, intermediate_size=32)
    with refused("model.layers.0.mlp.down_proj.weight", "(16, 24) in the file", "(16, 32)"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "nothing-known"}, ["nothing-known"]),
        ({"hidden_size": "x"}, ["hidden_size"]),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}},
            ["--trust_remote_code"],
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(folder: Path, values: dict[str, object], words: list[str]) -> None:
    change(folder, **values)
    with refused(*words):
        load_model(str(folder))


def test_a_configuration_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with refused("JSON"):
        load_model(str(folder))


def test_models_of_another_kind(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 40,
    }
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    LlamaModel(tiny_model().config).save_pretrained(tmp_path / "headless")
    for name in ("bert", "t5"):
        with refused(f"a {name} model", "left to right"):
            load_model(str(tmp_path / name))
    with refused("lacks 1 weights", "lm_head.weight"):
        load_model(str(tmp_path / "headless"))


def test_four_bits_need_the_extra_and_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("pip install 'relax-trainers[quantization]'"):
        load_model(str(folder), quantize="4bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with refused("CUDA"):
        load_model(str(folder), quantize="4bit")


def test_the_tokenizer_comes_back_as_it_was_saved(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template == CHATML
    assert tokenizer("Hé\n").input_ids == byte_tokenizer(CHATML)("Hé\n").input_ids


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with refused("the tokenizer of"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_ends_no_text(tmp_path: Path) -> None:
    byte_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with refused("no end-of-sequence token", '"eos_token"', "tokenizer_config.json"):
        load_tokenizer(str(tmp_path))


def test_a_chat_template_from_a_file_or_as_text(folder: Path) -> None:
    file = folder / "gemma.jinja"
    file.write_text(GEMMA)
    assert load_tokenizer(str(folder), chat_template=str(file)).chat_template == GEMMA
    assert load_tokenizer(str(folder), chat_template=LLAMA3).chat_template == LLAMA3
    refuses_everything = "{{ raise_exception('not like this') }}"
    assert load_tokenizer(str(folder), chat_template=refuses_everything).chat_template == refuses_everything
    with refused("--chat_template=missing.jinja", "neither a file"):
        load_tokenizer(str(folder), chat_template="missing.jinja")
    with refused("--chat_template", "line 1", "endfor"):
        load_tokenizer(str(folder), chat_template="{% for m in messages %}{{ m.content }}")


def test_padding_needs_no_pad_token(tmp_path: Path) -> None:
    assert pad_id(byte_tokenizer()) == byte_tokenizer().pad_token_id
    byte_tokenizer(pad_token=None).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    assert tokenizer.pad_token is None
    assert pad_id(byte_tokenizer(pad_token=None, eos_token=None)) == 0


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (None, ["</s>"]),
        (CHATML, ["</s>", "<|im_end|>"]),
        (LLAMA3, ["</s>", "<|eot_id|>"]),
        (GEMMA, ["</s>", "<end_of_turn>"]),
        (MISTRAL, ["</s>"]),
        (ZEPHYR, ["</s>"]),
        ("{{ raise_exception('no') }}", ["</s>"]),
    ],
)
def test_where_a_completion_ends(template: str | None, ends: list[str]) -> None:
    tokenizer = byte_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)) == ends


def test_a_vocabulary_that_the_embedding_cannot_hold() -> None:
    tokenizer = byte_tokenizer(CHATML)
    check_vocabulary(tiny_model(), tokenizer)
    size = len(tokenizer)
    with refused(f"up to {size - 1}", "only 100 rows", "--model"):
        check_vocabulary(tiny_model(vocab_size=100), tokenizer)
    with refused(f"only {size - 1} rows", "<|im_end|>"):  # the last added token, which the chat template writes
        check_vocabulary(tiny_model(vocab_size=size - 1), tokenizer)


def test_an_added_token_that_no_text_contains_may_lack_its_row() -> None:
    tokenizer = byte_tokenizer(CHATML, special=("<image>",))  # as in Gemma 3's text-only models
    with pytest.warns(UserWarning, match="<image> cannot be trained on"):
        check_vocabulary(tiny_model(vocab_size=len(tokenizer) - 1), tokenizer)


def test_parameters_are_counted_once() -> None:
    untied, tied = tiny_model(), tiny_model(tie_word_embeddings=True)
    assert count_parameters(untied)[0] - count_parameters(tied)[0] == 16 * VOCABULARY
    untied.lm_head.requires_grad_(False)
    total, trainable = count_parameters(untied)
    assert total == sum(weight.numel() for weight in untied.parameters())
    assert total - trainable == 16 * VOCABULARY


def test_importing_the_loaders_loads_no_library() -> None:
    program = (
        "import sys, relax.models, relax.lora, relax.export; assert not {'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
