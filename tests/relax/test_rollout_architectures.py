"""The engine against ``generate`` and against a full forward, architecture by architecture."""

import warnings

import peft
import pytest
import torch
from rollout_models import SERVED, SLOW, build, random_prompts
from transformers import PreTrainedModel

from relax.rollout import PolicyEngine, Rollouts, Sampling

NEW, SAMPLES, TOKENS_OF_SLOTS = 24, 2, 200
"""So few tokens that four rows are decoded at one time and the others take their places."""


def greedy(model: PreTrainedModel, prompt: list[int], num_tokens: int = NEW) -> list[int]:
    """What transformers' own ``generate`` says."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, **options)
    return out[0, len(prompt) :].tolist()


def training_logprobs(model: torch.nn.Module, prompts: list[list[int]], rollouts: Rollouts) -> torch.Tensor:
    """Of every completion token, from one full forward a completion."""
    found = []
    for row, completion in enumerate(rollouts.completions()):
        prompt = prompts[row // rollouts.num_samples]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
        logits = logits.to(rollouts.logprobs.dtype)
        found.append(logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return torch.cat(found)


def check_greedy(engine: PolicyEngine, model: PreTrainedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(max_new_tokens=NEW, greedy=True)
    found = engine.generate(prompts, num_samples=SAMPLES, sampling=sampling, seed=0)
    expected = [greedy(model, prompt) for prompt in prompts]
    assert len({token for row in expected for token in row}) > 10, "the model says too little to tell anything"
    assert found.completions() == [row for row in expected for _ in range(SAMPLES)]


def check_training(model: torch.nn.Module) -> None:
    """The model can still be trained: nothing that generation made is left in it."""
    ids = torch.tensor([random_prompts((12,))[0]])
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "expert" not in name)


def check_logprobs(engine: PolicyEngine, model: torch.nn.Module, prompts: list[list[int]], tolerance: float) -> None:
    sampling = Sampling(max_new_tokens=NEW, stop_ids=(5, 9, 20, 77))
    rollouts = engine.generate(prompts, num_samples=SAMPLES, sampling=sampling, seed=1)
    torch.testing.assert_close(rollouts.logprobs, training_logprobs(model, prompts, rollouts), rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", SERVED)
def test_slots_say_what_generate_says_and_know_its_log_probs(architecture: str) -> None:
    model, prompts = build(architecture), random_prompts()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it would say that it is decoded slowly
        engine = PolicyEngine(model, memory=TOKENS_OF_SLOTS)
    check_greedy(engine, model, prompts)
    check_logprobs(engine, model, prompts, tolerance=2e-5)
    check_training(model)


@pytest.mark.parametrize("architecture", SLOW)
def test_what_slots_cannot_serve_is_served_slowly_with_a_reason(architecture: str) -> None:
    model, prompts = build(architecture), random_prompts()
    with pytest.warns(UserWarning, match=f"{type(model).__name__} .*one prompt at a time"):
        engine = PolicyEngine(model)
    check_greedy(engine, model, prompts)
    check_logprobs(engine, model, prompts, tolerance=1e-2)  # recurrent states amplify rounding, here a hundredfold
    check_training(model)


@pytest.mark.parametrize("architecture", ["llama", "qwen3 part sliding", "gpt2", "gpt_oss", "mixtral"])
def test_log_probs_in_fp64_equal_the_training_forward_to_rounding(architecture: str) -> None:
    model, prompts = build(architecture).double(), random_prompts()
    check_logprobs(PolicyEngine(model, memory=TOKENS_OF_SLOTS), model, prompts, tolerance=1e-12)


def test_an_adapter_decodes_as_it_trains() -> None:
    config = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("llama"), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    prompts = random_prompts()
    engine = PolicyEngine(model.train(), memory=TOKENS_OF_SLOTS)
    assert all(module.training for module in model.modules()), "back to training mode"
    model.eval()
    check_greedy(engine, model, prompts)
    check_logprobs(engine, model, prompts, tolerance=2e-5)
    with model.disable_adapter():
        base = greedy(model, prompts[0])
    assert base != greedy(model, prompts[0]), "the adapter makes a difference"


def test_bf16_weights_decode_as_they_train() -> None:
    """To the precision of bf16: a log-prob of -10 has a step of 1/16."""
    model, prompts = build("llama", initializer_range=0.1).bfloat16(), random_prompts()
    check_logprobs(PolicyEngine(model, memory=TOKENS_OF_SLOTS), model, prompts, tolerance=0.1)


def test_inside_autocast_the_training_forward_that_follows_has_gradients() -> None:
    """Autocast remembers weights that it has cast; those of a forward without gradients have none."""
    model, prompts = build("llama", initializer_range=0.1), random_prompts()
    engine = PolicyEngine(model)
    with torch.autocast("cpu", torch.bfloat16):
        check_logprobs(engine, model, prompts, tolerance=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        engine.generate(prompts, num_samples=1, sampling=Sampling(max_new_tokens=3), seed=0)
        check_training(model)


def test_new_weights_are_used_at_once() -> None:
    model, prompts = build("llama"), random_prompts()
    engine = PolicyEngine(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    check_greedy(engine, model, prompts)


@pytest.mark.filterwarnings("ignore:the longest prompt")
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_change_with_length_are_never_read_from_a_cache(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 16}
    model = build("llama", rope_parameters=rope, max_position_embeddings=16 if kind == "dynamic" else 64)
    prompts = random_prompts((9, 6, 6))
    engine = PolicyEngine(model)
    sampling = Sampling(max_new_tokens=12, greedy=True)
    with pytest.warns(UserWarning, match="rotary frequencies in sequences of more than 16 tokens"):
        found = engine.generate(prompts, num_samples=1, sampling=sampling, seed=0)
    for prompt, completion in zip(prompts, found.completions(), strict=True):
        ids = [*prompt]
        for token in completion:
            with torch.no_grad():
                assert model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax() == token
            ids.append(token)
    check_training(model)


def test_the_probe_finds_an_attention_that_is_not_what_it_seems(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose attention asks for something that slots do not know: here, a bias on the scores' scale."""
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(_stretch, with_kwargs=True)
    prompts = random_prompts((7, 12))
    with pytest.warns(UserWarning, match="gives other logits there than in a full forward"):
        engine = PolicyEngine(model)
    found = engine.generate(prompts, num_samples=1, sampling=Sampling(max_new_tokens=5, greedy=True), seed=0)
    for prompt, completion in zip(prompts, found.completions(), strict=True):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            best = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == completion


def _stretch(module: torch.nn.Module, args: tuple[()], options: dict[str, torch.Tensor]) -> tuple[tuple[()], dict]:
    """Hidden states scaled by their column: right for a row from its beginning, wrong for a lone token."""
    hidden = options["hidden_states"]
    scale = torch.linspace(1, 2, 64, dtype=hidden.dtype)[: hidden.shape[1], None]
    return args, options | {"hidden_states": hidden * scale}
