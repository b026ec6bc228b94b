"""LoRA: which weights are trained, by which equation, and what is refused."""

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny_models import logits, refused, shake, tiny_model
from transformers import LlamaForSequenceClassification, PreTrainedModel

from relax.lora import LoRASettings, add_lora, enable_gradient_checkpointing, load_adapter, lora_settings

LLAMA_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def tiny_classifier() -> PreTrainedModel:
    """The body of ``tiny_model`` with a head of one output, which reads scores at the last token."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny_model().config)
    config.num_labels, config.pad_token_id = 1, 299
    return LlamaForSequenceClassification(config).eval()


ADAPTER = LoRASettings(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])


def adapted_layers(model: torch.nn.Module) -> set[str]:
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    ("kind", "layers"), [("llama", LLAMA_LINEAR), ("qwen3", LLAMA_LINEAR), ("gpt2", {"c_attn", "c_proj", "c_fc"})]
)
def test_every_linear_layer_but_the_head_is_adapted(kind: str, layers: set[str]) -> None:
    before = logits(tiny_model(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = add_lora(tiny_model(kind), LoRASettings(r=4))
    assert adapted_layers(model) == layers
    assert torch.equal(logits(model), before)  # training starts at the base model
    assert all(("lora_" in name) == weight.requires_grad for name, weight in model.named_parameters())


@pytest.mark.parametrize("rslora", [False, True])
def test_the_update_is_the_papers(rslora: bool) -> None:
    settings = LoRASettings(r=4, alpha=24, target_modules=["q_proj"], use_rslora=rslora)
    model = add_lora(tiny_model().double(), settings).double()
    shake(model)
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    inputs = torch.randn(3, 16, dtype=torch.float64)
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    scale = 24 / math.sqrt(4) if rslora else 24 / 4
    torch.testing.assert_close(layer(inputs), inputs @ (layer.base_layer.weight + scale * b @ a).T, rtol=1e-12, atol=0)


def test_targets_by_name_and_by_expression() -> None:
    for targets in (["q_proj", "down_proj"], "q_proj,down_proj", r".*\.(q_proj|down_proj)"):
        assert adapted_layers(add_lora(tiny_model(), LoRASettings(4, target_modules=targets))) == {
            "q_proj",
            "down_proj",
        }
    only_one = add_lora(tiny_model(), LoRASettings(4, target_modules="layers.1.mlp.up_proj"))
    assert sum(".lora_A" in name for name, _ in only_one.named_parameters()) == 1


def test_modules_to_save_are_trained_in_full() -> None:
    model = add_lora(tiny_model(), LoRASettings(4, modules_to_save=["lm_head"]))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name}
    assert trained == {"base_model.model.lm_head.modules_to_save.default.weight"}


def test_dora_learns_magnitudes_too() -> None:
    model = add_lora(tiny_model(), LoRASettings(4, use_dora=True))
    assert any("lora_magnitude_vector" in name and w.requires_grad for name, w in model.named_parameters())


def test_a_half_precision_base_is_frozen_and_the_adapter_float32() -> None:
    model = add_lora(tiny_model().to(torch.bfloat16), LoRASettings(4))
    dtypes = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    with pytest.warns(UserWarning, match="--lora_modules_to_save trains in bfloat16.*--dtype=float32"):
        add_lora(tiny_model().to(torch.bfloat16), LoRASettings(4, modules_to_save=["lm_head"]))


@pytest.mark.parametrize("targets", [["query"], ["q_proj", "query"], "query", r".*\.query"])
def test_a_target_that_does_not_exist(targets: str | list[str]) -> None:
    with refused("--lora_target_modules", "query", "down_proj, embed_tokens, gate_proj"):
        add_lora(tiny_model(), LoRASettings(4, target_modules=targets))


def test_other_mistaken_names() -> None:
    with refused("--lora_modules_to_save", "head", "lm_head"):
        add_lora(tiny_model(), LoRASettings(4, modules_to_save=["head"]))
    with refused("--lora_target_modules=*q_proj", "regular expression"):
        add_lora(tiny_model(), LoRASettings(4, target_modules="*q_proj"))
    with refused("--lora_target_modules", "LlamaRMSNorm", "not supported"):
        add_lora(tiny_model(), LoRASettings(4, target_modules=["input_layernorm"]))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"r": 0}, "--lora_r"),
        ({"r": -4}, "--lora_r"),
        ({"r": 4, "alpha": 0}, "--lora_alpha"),
        ({"r": 4, "dropout": 1.0}, "--lora_dropout"),
        ({"r": 4, "dropout": -0.1}, "--lora_dropout"),
    ],
)
def test_values_out_of_range(options: dict[str, float], flag: str) -> None:
    with refused(flag, str(list(options.values())[-1])):
        LoRASettings(**options)


def test_settings_without_a_rank_are_refused() -> None:
    assert lora_settings(None, alpha=None, use_dora=False) is None
    assert lora_settings(0) is None
    assert lora_settings(8, alpha=None, dropout=0.1, use_dora=True) == LoRASettings(8, dropout=0.1, use_dora=True)
    with refused("--lora_alpha, --use_dora", "no effect without --lora_r"):
        lora_settings(None, alpha=16, dropout=None, use_dora=True)
    with refused("--lora_dropout"):
        lora_settings(None, dropout=0.0)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A trained adapter of the tiny Llama."""
    model = add_lora(tiny_model(), ADAPTER)
    shake(model)
    model.save_pretrained(str(tmp_path))
    torch.save(logits(model), tmp_path / "logits.pt")
    return tmp_path


def test_an_adapter_continues_where_it_was(adapter: Path) -> None:
    model = load_adapter(tiny_model(), str(adapter))
    assert torch.equal(logits(model), torch.load(adapter / "logits.pt", weights_only=True))
    fresh = add_lora(tiny_model(), ADAPTER)
    trained, expected = (
        {name for name, weight in each.named_parameters() if weight.requires_grad} for each in (model, fresh)
    )
    assert trained == expected


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"hidden_size": 32}),
        ("llama", {"num_hidden_layers": 1}),
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"vocab_size": 290}),
        ("gpt2", {}),
    ],
)
def test_an_adapter_of_another_base(adapter: Path, kind: str, changes: dict[str, int]) -> None:
    with refused(f"--adapter={adapter}"):
        load_adapter(tiny_model(kind, **changes), str(adapter))


def test_an_adapter_that_cannot_be_read(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with refused(f"--adapter={adapter}", "SafetensorError"):
        load_adapter(tiny_model(), str(adapter))
    weights.unlink()
    with refused("adapter_model.safetensors"):
        load_adapter(tiny_model(), str(adapter))
    (adapter / "adapter_config.json").unlink()
    with refused("adapter_config.json"):
        load_adapter(tiny_model(), str(adapter))
    with refused("does not exist"):
        load_adapter(tiny_model(), "./nothing")
    with refused("--adapter=org/nothing"):
        load_adapter(tiny_model(), "org/nothing")


def test_an_adapter_of_another_kind(tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny_model(num_key_value_heads=4), config).save_pretrained(str(tmp_path))
    with refused("PREFIX_TUNING", "only LORA"):
        load_adapter(tiny_model(num_key_value_heads=4), str(tmp_path))


def test_an_adapter_of_the_other_task(adapter: Path) -> None:
    with refused(f"--adapter={adapter} has the task type CAUSAL_LM, needed is SEQ_CLS"):
        load_adapter(tiny_classifier(), str(adapter), task_type="SEQ_CLS")


def test_a_classifiers_head_is_trained_kept_and_continued(tmp_path: Path) -> None:
    model = add_lora(tiny_classifier(), LoRASettings(4), task_type="SEQ_CLS")
    assert adapted_layers(model) == LLAMA_LINEAR
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name}
    assert trained == {"base_model.model.score.modules_to_save.default.weight"}
    shake(model)
    model.save_pretrained(str(tmp_path))
    continued = load_adapter(tiny_classifier(), str(tmp_path), task_type="SEQ_CLS")
    assert torch.equal(logits(continued), logits(model))
    with refused(f"--adapter={tmp_path} has the task type SEQ_CLS, needed is CAUSAL_LM"):
        load_adapter(tiny_model(), str(tmp_path))


def gradients(kind: str, *, lora: bool, checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of one step with dropout, and how often the first layer's MLP ran."""
    model: torch.nn.Module = tiny_model(kind).double()
    if lora:
        model = add_lora(model, LoRASettings(4, dropout=0.2)).double()
        shake(model)
    if checkpointing:
        enable_gradient_checkpointing(model)
    runs = []
    mlp = next(module for name, module in model.named_modules() if name.endswith(".mlp"))
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))  # the recomputation stops inside the MLP
    ids = torch.arange(14).view(2, 7)
    torch.manual_seed(5)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}, len(runs)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_recomputes_and_leaves_the_gradients(kind: str, lora: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recomputed, twice = gradients(kind, lora=lora, checkpointing=True)
    plain, once = gradients(kind, lora=lora, checkpointing=False)
    assert (once, twice) == (1, 2)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_checkpointing_leaves_generation_alone() -> None:
    plain, model = tiny_model(), tiny_model()
    enable_gradient_checkpointing(model)
    ids = torch.arange(5)[None]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    assert model.config.use_cache


def test_checkpointing_where_the_architecture_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with refused("--gradient_checkpointing", "LlamaForCausalLM"):
        enable_gradient_checkpointing(model)


def test_peft_itself_ignores_a_name_that_matches_nothing() -> None:
    """Why add_lora checks names: drop the check when this one starts to fail."""
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "query"]))
    assert adapted_layers(model) == {"q_proj"}
