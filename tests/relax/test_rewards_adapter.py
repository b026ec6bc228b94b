"""A reward model as a LoRA adapter: with its base, merged, or on the policy's backbone, its scores are the same."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizers import byte_tokenizer, family_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import logits, network_calls, refused, shake, tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from relax.adapters import REWARD, adapter_weights, add_adapter
from relax.causal_lm import frozen_digest
from relax.dropout import has_dropout
from relax.export import export_model
from relax.lora import LoRASettings, add_lora, enable_gradient_checkpointing
from relax.rewards import build_rewards
from relax.rewards.adapter_reward import AdapterReward
from relax.rewards.reward_model import RewardModel
from relax.rewards.samples import Sample

TOKENIZER = byte_tokenizer(None, special=(), bos_token=None, eos_token="<|end|>", pad_token="<|end|>")
PROMPTS = ["Hi", "How are you?", "1+1", "x", "A longer one, to be padded"]
COMPLETIONS = ["there", "well", "2<|end|>", "", "a " * 10]
TEXTS = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
HEADS = {"llama": LlamaForSequenceClassification, "gpt2": GPT2ForSequenceClassification}


def base(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A language model in a folder, the base of policy and reward model."""
    tiny_model(kind, **changes).save_pretrained(folder / "base")
    return folder / "base"


def export_judge(folder: Path, kind: str = "llama", *, tokenizer: Any = TOKENIZER, labels: int = 1, **lora: Any) -> str:
    """A trained reward model's adapter, exported, and merged beside it; its base beside that."""
    torch.manual_seed(3)
    model = HEADS[kind].from_pretrained(base(folder, kind), num_labels=labels)
    model.config.pad_token_id = 299
    judge = add_lora(model, LoRASettings(4, **lora), task_type="SEQ_CLS")
    shake(judge, 0.3)
    export_model(judge, tokenizer, folder / "judge", merge_adapter=True)
    return str(folder / "judge")


def policy_of(folder: Path, kind: str = "llama", **lora: Any) -> PeftModel:
    """With an adapter of its own, as training leaves it."""
    model = add_lora(type(tiny_model(kind)).from_pretrained(folder / "base"), LoRASettings(2, **lora))
    shake(model, 0.3)
    return model


@torch.no_grad()
def one_by_one(folder: str, base_folder: Path, texts: list[str]) -> list[float]:
    """The oracle, as a Hugging Face user would write it: no batch, no padding."""
    classifier = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    model = PeftModel.from_pretrained(classifier, folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model.config.pad_token_id = None
    return [model(torch.tensor([tokenizer(text).input_ids])).logits.item() for text in texts]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_alone_merged_and_on_the_policys_backbone_scores_are_the_same(kind: str, tmp_path: Path) -> None:
    folder = export_judge(tmp_path, kind)
    expected = one_by_one(folder, tmp_path / "base", TEXTS)
    assert len({round(score, 3) for score in expected}) == 5
    assert RewardModel(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert RewardModel(f"{folder}/merged")(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    for batch_size in (1, 2, 16):
        reward = AdapterReward(policy_of(tmp_path, kind), TOKENIZER, folder, batch_size=batch_size)
        assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_it_is_a_reward_by_name(tmp_path: Path) -> None:
    folder = export_judge(tmp_path)
    samples = [Sample(prompt, completion, {}) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    scores = build_rewards(f"model={folder}").score(samples)
    assert scores.total == pytest.approx(one_by_one(folder, tmp_path / "base", TEXTS), abs=1e-5)


def test_the_policy_does_not_notice(tmp_path: Path) -> None:
    folder = export_judge(tmp_path, target_modules=["q_proj", "embed_tokens"])
    policy = policy_of(tmp_path, target_modules=["v_proj"], modules_to_save=["lm_head"], dropout=0.5)
    before, trained = logits(policy), {name for name, w in policy.named_parameters() if w.requires_grad}
    reward = AdapterReward(policy, TOKENIZER, folder)
    expected = one_by_one(folder, tmp_path / "base", TEXTS)
    policy.train()
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)  # in evaluation mode meanwhile
    assert policy.training
    assert policy.active_adapter == "default"
    assert torch.equal(logits(policy), before)
    assert {name for name, w in policy.named_parameters() if w.requires_grad} == trained
    assert adapter_weights(policy, REWARD)
    export_model(policy, TOKENIZER, tmp_path / "out")
    assert not any("reward" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert not (tmp_path / "out" / "reward").exists()


def test_dropout_of_its_training_does_not_make_the_policy_noisy(tmp_path: Path) -> None:
    folder = export_judge(tmp_path, dropout=0.1)
    policy = policy_of(tmp_path)
    reward = AdapterReward(policy, TOKENIZER, folder)
    assert not has_dropout(policy)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(one_by_one(folder, tmp_path / "base", TEXTS), abs=1e-5)


def test_as_a_reward_it_computes_in_the_precision_of_the_run(tmp_path: Path) -> None:
    """A call with a time limit has a thread of its own, which knows of no autocast."""
    folder = export_judge(tmp_path)
    reward = AdapterReward(policy_of(tmp_path), TOKENIZER, folder)
    samples = [Sample(prompt, completion, {}) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    full = reward(PROMPTS, COMPLETIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward(PROMPTS, COMPLETIONS)
        assert mixed != full
        assert build_rewards([reward]).score(samples).total == mixed
        assert build_rewards({"class_path": reward, "time_limit_seconds": math.inf}).score(samples).total == mixed


def test_policy_critic_and_reward_share_a_backbone_and_a_digest(tmp_path: Path) -> None:
    folder = export_judge(tmp_path)
    policy = policy_of(tmp_path)
    enable_gradient_checkpointing(policy)
    digest = frozen_digest(policy)
    add_adapter(policy, "critic")
    reward = AdapterReward(policy, TOKENIZER, folder)
    assert frozen_digest(policy) == digest
    expected = reward(PROMPTS, COMPLETIONS)
    policy.train()(input_ids=torch.arange(14).view(2, 7), labels=torch.arange(14).view(2, 7)).loss.backward()
    torch.optim.SGD([w for w in policy.parameters() if w.requires_grad], lr=1.0).step()
    assert reward(PROMPTS, COMPLETIONS) == expected  # whatever the others learn


def test_texts_are_read_as_the_reward_model_learned_to_read_them(tmp_path: Path) -> None:
    chat = family_tokenizer("chatml")
    folder = export_judge(tmp_path, tokenizer=chat)
    asked = [{"role": "user", "content": "Hi"}]
    text = chat.apply_chat_template([*asked, {"role": "assistant", "content": "there"}], tokenize=False)
    (expected,) = one_by_one(folder, tmp_path / "base", [text])
    reward = AdapterReward(policy_of(tmp_path), TOKENIZER, folder)
    assert reward(["Hi", asked], ["there", "there"]) == pytest.approx([expected] * 2, abs=1e-5)
    for file in Path(folder).glob("*token*"):
        file.unlink()
    again = AdapterReward(policy_of(tmp_path), chat, folder)  # without one it is the policy's
    assert again(["Hi"], ["there"]) == pytest.approx([expected], abs=1e-5)


def test_what_is_too_long_loses_its_beginning_with_a_warning(tmp_path: Path) -> None:
    folder = export_judge(tmp_path)
    reward = AdapterReward(policy_of(tmp_path), TOKENIZER, folder, max_length=9)
    (expected,) = one_by_one(folder, tmp_path / "base", [": the end"])
    with pytest.warns(UserWarning, match="longer than its limit of 9 tokens"):
        assert reward(["A long beginning"], [": the end"]) == pytest.approx([expected], abs=1e-5)


def test_folders_that_hold_no_such_reward_model(tmp_path: Path) -> None:
    folder = export_judge(tmp_path, labels=2)
    policy = policy_of(tmp_path)
    with refused(f"--reward_model={folder} has 2 outputs"):
        AdapterReward(policy, TOKENIZER, folder)
    export_model(policy, TOKENIZER, tmp_path / "writer")
    with refused("writer has the task type CAUSAL_LM, needed is SEQ_CLS"):
        AdapterReward(policy, TOKENIZER, str(tmp_path / "writer"))
    with refused("--rewards=", "writer has the task type CAUSAL_LM"):
        RewardModel(str(tmp_path / "writer"))
    with refused("base has no adapter_config.json"):
        AdapterReward(policy, TOKENIZER, str(tmp_path / "base"))
    with refused("does not exist"):
        AdapterReward(policy, TOKENIZER, str(tmp_path / "nowhere"))
    headless = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))  # PEFT lets the task type be none
    headless.save_pretrained(str(tmp_path / "headless"))
    with refused("headless has no score head"):
        AdapterReward(policy, TOKENIZER, str(tmp_path / "headless"))
    assert REWARD not in policy.peft_config


def test_more_than_lora_and_a_head_does_not_fit_beside_a_policy(tmp_path: Path) -> None:
    folder = export_judge(tmp_path, modules_to_save=["score", "embed_tokens"])
    with refused("changes base_model.model.model.embed_tokens.weight, too"):
        AdapterReward(policy_of(tmp_path), TOKENIZER, folder)
    expected = one_by_one(folder, tmp_path / "base", TEXTS)
    assert RewardModel(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"), [("llama", {"hidden_size": 32}), ("llama", {"num_hidden_layers": 3}), ("gpt2", {})]
)
def test_the_adapter_of_another_base(kind: str, changes: dict[str, int], tmp_path: Path) -> None:
    folder = export_judge(tmp_path, target_modules=["q_proj", "down_proj"])
    policy = add_lora(tiny_model(kind, **changes), LoRASettings(2))
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    with refused(f"--reward_model={folder}"):
        AdapterReward(policy, TOKENIZER, folder)
    assert REWARD not in policy.peft_config
    assert {name for name, weight in policy.named_parameters() if weight.requires_grad} == trained
    tiny_model(kind, **changes).save_pretrained(tmp_path / "base")
    with refused(folder):
        RewardModel(folder)


def test_a_policy_without_an_adapter_or_with_a_judge_already(tmp_path: Path) -> None:
    folder = export_judge(tmp_path)
    with refused("which has none; add --lora_r=16"):
        AdapterReward(tiny_model(), TOKENIZER, folder)
    policy = policy_of(tmp_path)
    AdapterReward(policy, TOKENIZER, folder)
    with refused("has a reward adapter already"):
        AdapterReward(policy, TOKENIZER, folder)


def test_a_tokenizer_that_the_policys_backbone_does_not_know(tmp_path: Path) -> None:
    folder = export_judge(tmp_path, tokenizer=byte_tokenizer(None, special=tuple(f"<{i}>" for i in range(60))))
    with pytest.warns(UserWarning, match="cannot be trained on"):
        AdapterReward(policy_of(tmp_path), TOKENIZER, folder)


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    folder = Path(export_judge(tmp_path))
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, words in ((str(tmp_path / "gone"), "does not exist"), (None, "does not say what its base is")):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        with refused(words):
            RewardModel(str(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_backbone_of_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = export_judge(tmp_path)
    expected = one_by_one(folder, tmp_path / "base", TEXTS)
    policy = add_lora(tiny_model().to(dtype), LoRASettings(2))
    reward = AdapterReward(policy, TOKENIZER, folder)
    if dtype == torch.float64:
        policy.double()
    else:
        assert {weight.dtype for weight in adapter_weights(policy, REWARD).values()} == {torch.float32}
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=0.25 if dtype == torch.bfloat16 else 1e-5)


def test_folders_never_touch_the_network(tmp_path: Path) -> None:
    export_judge(tmp_path)
    policy_of(tmp_path).save_pretrained(str(tmp_path / "policy"))
    program = """
from relax.lora import load_adapter
from relax.models import load_model, load_tokenizer
from relax.rewards.adapter_reward import AdapterReward
from relax.rewards.reward_model import RewardModel
policy = load_adapter(load_model("base"), "policy")
one, other = RewardModel("judge"), AdapterReward(policy, load_tokenizer("judge"), "judge")
assert abs(one(["Hi"], ["there"])[0] - other(["Hi"], ["there"])[0]) < 1e-5
"""
    assert network_calls(program, tmp_path) == []
