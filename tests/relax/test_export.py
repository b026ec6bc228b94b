"""Exports: what Hugging Face users load computes what was trained, and a folder is complete or not there."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from byte_tokenizers import CHATML, byte_tokenizer
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_models import logits, network_calls, refused, shake, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from relax.adapters import CRITIC, add_adapter, using_adapter
from relax.export import check_export, export_model, merged_model, model_card
from relax.lora import LoRASettings, add_lora, load_adapter

TOKENIZER = byte_tokenizer(CHATML)
KINDS = ["llama", "gpt2", "qwen3"]
# PEFT warns at length where an adapter meets tied embeddings; that merging gets them right is tested below.
pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*gradient_checkpointing")


def adapted(base: PreTrainedModel, **options: Any) -> PeftModel:
    """With an adapter that has been trained."""
    model = add_lora(base, LoRASettings(r=4, **options))
    shake(model)
    return model


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_comes_back(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    export_model(model, TOKENIZER, tmp_path / "out", card="# Mine\n")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == CHATML
    assert tokenizer("Hé").input_ids == TOKENIZER("Hé").input_ids
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no temporary folder is left


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": r".*\.(wte|embed_tokens)"},
    ],
    ids=["lora", "dora", "rslora", "head", "embedding"],
)
def test_an_adapter_comes_back_alone_and_merged(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(kind).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = adapted(base, **options)
    expected, before = logits(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    export_model(model, TOKENIZER, tmp_path / "out", merge_adapter=True)

    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert torch.equal(logits(alone), expected)
    by_recorded_name = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(by_recorded_name), expected)
    continued = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "out"))
    assert torch.equal(logits(continued), expected)

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    for folder in (tmp_path / "out", tmp_path / "out" / "merged"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == CHATML

    after = model.state_dict()
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("dora", [False, True])
def test_merging_unties_what_the_adapter_has_moved_apart(targets: list[str], dora: bool, tmp_path: Path) -> None:
    model = adapted(tiny_model(tie_word_embeddings=True), target_modules=targets, use_dora=dora)
    expected = logits(model)
    torch.testing.assert_close(logits(merged_model(model)), expected, rtol=1e-5, atol=1e-5)
    export_model(model, TOKENIZER, tmp_path / "out", merge_adapter=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert model.get_base_model().config.tie_word_embeddings
    assert torch.equal(logits(model), expected)


def test_merging_keeps_what_is_tied_tied(tmp_path: Path) -> None:
    export_model(adapted(tiny_model(tie_word_embeddings=True)), TOKENIZER, tmp_path / "out", merge_adapter=True)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "merged" / "model.safetensors")


def test_merging_shares_what_it_does_not_change() -> None:
    model = adapted(tiny_model(), target_modules=["q_proj"])
    merged, live = merged_model(model).model, model.get_base_model().model
    assert merged.embed_tokens.weight.data_ptr() == live.embed_tokens.weight.data_ptr()
    moved, kept = merged.layers[0].self_attn.q_proj, live.layers[0].self_attn.q_proj
    assert moved.weight.data_ptr() != kept.base_layer.weight.data_ptr()


def test_other_weights_than_the_live_ones(tmp_path: Path) -> None:
    model, average = tiny_model(), tiny_model(seed=1)
    state = dict(average.state_dict())
    export_model(model, TOKENIZER, tmp_path / "whole", state_dict=state)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(average))
    assert state.keys() == average.state_dict().keys()  # transformers empties the dict it is given


def test_another_adapter_than_the_live_one(tmp_path: Path) -> None:
    live, average = adapted(tiny_model()), adapted(tiny_model())
    shake(average, 0.2)
    export_model(live, TOKENIZER, tmp_path / "out", state_dict=average.state_dict(), merge_adapter=True)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "out")), logits(average))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged), logits(average), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "head"])
def test_of_several_adapters_the_policys_alone_is_written_and_merged(options: dict[str, Any], tmp_path: Path) -> None:
    model = add_lora(tiny_model(), LoRASettings(r=4, **options))
    add_adapter(model, CRITIC)
    shake(model)
    expected, before = logits(model), trainable(model)
    with using_adapter(model, CRITIC):  # as in the middle of an evaluation
        export_model(model, TOKENIZER, tmp_path / "out", merge_adapter=True)
        merged_model(model)
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir() and path.name != "merged"]
    assert not any(CRITIC in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    alone = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    assert torch.equal(logits(alone), expected)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), expected)
    assert trainable(model) == before


def test_generation_stops_where_the_tokenizer_says(tmp_path: Path) -> None:
    model = tiny_model(bos_token_id=1, eos_token_id=2)  # Llama's defaults, ordinary letters to this tokenizer
    own = model.generation_config
    export_model(model, TOKENIZER, tmp_path / "out")
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert TOKENIZER.convert_ids_to_tokens(config.eos_token_id) == ["</s>", "<|im_end|>"]
    assert (config.pad_token_id, config.bos_token_id) == (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id)
    assert model.generation_config is own
    assert own.eos_token_id == 2


def test_generation_settings_that_transformers_refuses_to_save(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.3)
    with pytest.warns(UserWarning, match="only token ids are kept"):
        export_model(model, TOKENIZER, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    export_model(adapted(tiny_model()), TOKENIZER, tmp_path / "out", merge_adapter=True)
    export_model(tiny_model(), TOKENIZER, tmp_path / "out")
    assert not (tmp_path / "out" / "merged").exists()
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_export_left_is_no_obstacle(tmp_path: Path) -> None:
    for leftover in (".out.partial", ".out.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "file").touch()
    export_model(tiny_model(), TOKENIZER, tmp_path / "out")
    export_model(tiny_model(), TOKENIZER, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").touch()
    for name, word in (("notes", "diary.txt"), ("run", "checkpoints"), ("notes/diary.txt", "is a file")):
        with refused(word, "another output folder"):
            export_model(model, TOKENIZER, tmp_path / name)
    with refused("replace the model that was loaded"):
        check_export(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "base")
    (tmp_path / "empty").mkdir()
    check_export(model, tmp_path / "empty")


def test_merging_where_it_cannot_be_done() -> None:
    with pytest.warns(UserWarning, match="--merge_adapter has no effect"):
        check_export(tiny_model(), "out", merge_adapter=True)
    model = adapted(tiny_model())
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)  # as bitsandbytes packs it
    with refused("--merge_adapter", "4 bits"):
        check_export(model, "out", merge_adapter=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no room left"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "not allowed to write"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "not allowed to write"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "no room left"),
    ],
)
def test_a_disk_that_cannot_be_written(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_model(), TOKENIZER, tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise error

    tokenizer = byte_tokenizer()
    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with refused(words, "out"):
        export_model(tiny_model(seed=1), tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(tiny_model()))  # the earlier export is still there


def test_errors_that_are_not_the_disks_are_not_covered_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda *_: {}["a bug"])
    with pytest.raises(KeyError):
        export_model(tiny_model(), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with refused("not allowed to write"):
        export_model(tiny_model(), TOKENIZER, tmp_path / "out")
    tmp_path.chmod(0o700)


def test_neither_loading_a_folder_nor_exporting_touches_the_network(tmp_path: Path) -> None:
    base = tmp_path / "base"
    export_model(tiny_model(), TOKENIZER, base)
    export_model(adapted(AutoModelForCausalLM.from_pretrained(base)), TOKENIZER, tmp_path / "adapter")
    program = """
from relax.export import export_model
from relax.lora import load_adapter
from relax.models import load_model, load_tokenizer
model = load_model("base")
model.name_or_path = "org/base"  # as if it had come from the hub
export_model(load_adapter(model, "adapter"), load_tokenizer("base"), "out", merge_adapter=True)
"""
    assert network_calls(program, tmp_path) == []
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


def card(**changes: Any) -> str:
    options: dict[str, Any] = {"figures": {"val_loss": 1.23456789}, "settings": {"data": "a|b\nc"}, "trainer": "SFT"}
    return model_card(**(options | changes))


def test_the_card_names_the_base_but_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "tiny-base").mkdir()
    text = card(base_model=str(tmp_path / "tiny-base"), adapter=True)
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "tiny-base"
    assert (header["library_name"], header["pipeline_tag"]) == ("peft", "text-generation")
    assert {"relax", "lora"} <= set(header["tags"])
    assert str(tmp_path) not in text
    assert yaml.safe_load(card(base_model="org/base").split("---")[1])["base_model"] == "org/base"
    assert "base_model" not in yaml.safe_load(card().split("---")[1])


def test_the_card_holds_figures_and_settings() -> None:
    text = card()
    assert "| val_loss | 1.23457 |" in text
    assert "| data | a\\|b c |" in text


@pytest.mark.parametrize("lora", [False, True])
def test_the_cards_example_runs(lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("base")
    model = adapted(tiny_model()) if lora else tiny_model()
    export_model(model, TOKENIZER, "path/to/this/folder")
    shutil.copytree("base", "org/base")
    example = re.findall(r"```python\n(.*?)```", card(base_model="org/base", adapter=lora), re.DOTALL)[0]
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    assert torch.equal(logits(namespace["model"]), logits(model))
    assert namespace["tokenizer"].chat_template == CHATML
