"""What a completion may depend on, how it ends, and what is refused."""

from collections.abc import Sequence

import peft
import pytest
import torch
from byte_tokenizers import byte_tokenizer
from rollout_models import VOCABULARY, build, random_prompts
from tiny_models import refused
from transformers import LogitsProcessorList, PreTrainedModel

from relax.causal_lm import isolate_documents
from relax.errors import TrainingStopped, UserError
from relax.rollout import PolicyEngine, Rollouts, Sampling, StopStrings
from relax.rollout import engine as engine_module
from relax.rollout.sampler import Sampler

STOPS = (5, 9, 20, 40, 77, 90, 111, 150)
SAMPLING = Sampling(max_new_tokens=30, stop_ids=STOPS)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama").double()  # in fp32, rounding could let a token fall on the other side of a border


@pytest.fixture(scope="module")
def reference(model: PreTrainedModel) -> Rollouts:
    return generate(PolicyEngine(model))


def generate(
    engine: PolicyEngine,
    prompts: Sequence[Sequence[int]] | None = None,
    sampling: Sampling = SAMPLING,
    num_samples: int = 4,
    **options: object,
) -> Rollouts:
    prompts = random_prompts() if prompts is None else prompts
    return engine.generate(prompts, num_samples=num_samples, sampling=sampling, seed=3, **options)


def same(ours: Rollouts, theirs: Rollouts) -> None:
    assert ours.completions() == theirs.completions()
    assert ours.finish_reasons == theirs.finish_reasons
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-11)


def test_completions_are_of_many_lengths_and_end_as_they_say(reference: Rollouts) -> None:
    assert len(reference.finish_reasons) == len(reference.lengths) == 24
    assert {*reference.finish_reasons} == {"stop", "length"}
    for ids, reason in zip(reference.completions(), reference.finish_reasons, strict=True):
        assert not {*ids[:-1]} & {*STOPS}, "the first stop token is the last token"
        assert reason == ("stop" if ids[-1] in STOPS else "length")
        assert reason == "stop" or len(ids) == 30
    assert len({tuple(ids) for ids in reference.completions()}) == 24


@pytest.mark.parametrize("memory", [61, 200, 500, "200KB"])
def test_memory_decides_how_many_rows_decode_together_and_nothing_else(
    model: PreTrainedModel, reference: Rollouts, memory: int | str
) -> None:
    same(generate(PolicyEngine(model, memory=memory)), reference)


def test_one_token_needs_no_memory(model: PreTrainedModel, reference: Rollouts) -> None:
    found = generate(PolicyEngine(model), sampling=Sampling(max_new_tokens=1, stop_ids=STOPS))
    assert found.completions() == [ids[:1] for ids in reference.completions()]
    assert {*found.finish_reasons} == {"stop", "length"}


def test_looking_for_finished_rows_less_often_changes_nothing(model: PreTrainedModel, reference: Rollouts) -> None:
    same(generate(PolicyEngine(model, steps_between_checks=7)), reference)
    same(generate(PolicyEngine(model, memory=300, steps_between_checks=4)), reference)


def test_prompts_read_in_pieces_change_nothing(
    model: PreTrainedModel, reference: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PIECE_TOKENS", 10)
    same(generate(PolicyEngine(model)), reference)


def test_half_the_prompts_elsewhere_give_half_the_completions(model: PreTrainedModel, reference: Rollouts) -> None:
    """As two processes would: ids name prompts in the whole run, not in the call."""
    prompts, engine = random_prompts(), PolicyEngine(model)
    for own in ([4, 1, 3], [0, 5, 2]):
        found = generate(engine, [prompts[i] for i in own], prompt_ids=own).completions()
        assert found == [reference.completions()[4 * i + sample] for i in own for sample in range(4)]


def test_noise_depends_on_seed_step_and_prompt_id(model: PreTrainedModel, reference: Rollouts) -> None:
    engine, prompts = PolicyEngine(model), random_prompts()
    same(generate(engine), reference)
    others = [generate(engine, step=1), generate(engine, prompt_ids=range(6, 12))]
    others.append(engine.generate(prompts, num_samples=4, sampling=SAMPLING, seed=4))
    for other in others:
        assert all(a != b for a, b in zip(other.completions(), reference.completions(), strict=True))


def test_equal_prompts_with_different_ids_are_read_once_and_answered_apart(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompt, read = PolicyEngine(model), random_prompts((12,))[0], []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: (read.append(inputs["input_ids"].shape), forward(**inputs))[1]
    )
    found = generate(engine, [prompt, prompt], num_samples=3)
    assert read[0] == (1, 12)
    assert all(shape[1] == 1 for shape in read[1:])
    assert len({tuple(ids) for ids in found.completions()}) == 6


def test_a_row_that_ends_costs_no_further_step(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, tokens = PolicyEngine(model, memory=600), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: (tokens.append(inputs["input_ids"].numel()), forward(**inputs))[1]
    )
    found = generate(engine, random_prompts((10, 10, 10, 10)))
    assert sum(tokens) == 4 * 10 + int((found.lengths - 1).sum()), "the last token of a row is not read"


def test_minimum_length_bars_stop_tokens_and_log_probs_know_it(model: PreTrainedModel, reference: Rollouts) -> None:
    sampling = Sampling(max_new_tokens=30, min_new_tokens=12, stop_ids=STOPS)
    found = generate(PolicyEngine(model), sampling=sampling)
    assert reference.lengths.min() < 12
    assert found.lengths.min() > 12
    prompt, ids = random_prompts()[0], found.completions()[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logits[:12, list(STOPS)] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(found.logprobs[: len(ids)], expected, rtol=0, atol=1e-11)


def test_every_setting_at_once_equals_transformers_processors(model: PreTrainedModel) -> None:
    """Log-probs of what was drawn, on the distribution that transformers' own processors make of the logits."""
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
    sampling = Sampling(max_new_tokens=20, min_new_tokens=4, stop_ids=STOPS, **settings)
    prompts = random_prompts()
    found = generate(PolicyEngine(model, memory=200), prompts, sampling)
    parts = zip(found.completions(), found.logprobs.split(found.lengths.tolist()), strict=True)
    for row, (ids, logprobs) in enumerate(parts):
        prompt = prompts[row // 4]
        process = processors(model, len(prompt), settings)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        for place, token in enumerate(ids):
            scores = process(torch.tensor([prompt + ids[:place]]), logits[place][None])
            assert scores.log_softmax(-1)[0, token].item() == pytest.approx(logprobs[place].item(), abs=1e-11)


def processors(model: PreTrainedModel, prompt_length: int, settings: dict[str, float]) -> LogitsProcessorList:
    """Those that ``generate`` would use."""
    config = model.generation_config.__class__(do_sample=True, min_new_tokens=4, eos_token_id=[*STOPS], **settings)
    config._eos_token_tensor = torch.tensor(STOPS)
    return model._get_logits_processor(
        config, input_ids_seq_length=prompt_length, logits_processor=LogitsProcessorList()
    )


def test_greedy_with_a_repetition_penalty_is_generate(model: PreTrainedModel) -> None:
    prompts = random_prompts()
    sampling = Sampling(max_new_tokens=20, greedy=True, repetition_penalty=1.5)
    found = generate(PolicyEngine(model, memory=200), prompts, sampling, num_samples=1).completions()
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 1.5}
    for prompt, ids in zip(prompts, found, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, **options)
        assert ids == expected[0, len(prompt) :].tolist()


def test_a_stop_string_ends_a_completion_where_it_is_complete() -> None:
    """Also across tokens, and inside one."""
    tokenizer = byte_tokenizer()
    stop = StopStrings(tokenizer, ["</a>", "é"])
    ids = tokenizer("x</a></a>yé", add_special_tokens=False)["input_ids"]
    ends = [count for count in range(1, len(ids) + 1) if stop(ids[:count])]
    assert tokenizer.decode(ids[: ends[0]]) == "x</a>"
    assert ends[-1] == len(ids)
    with refused("--stop_strings", "empty"):
        StopStrings(tokenizer, ["a", ""])


def test_a_condition_ends_a_completion_but_not_before_its_minimum(model: PreTrainedModel) -> None:
    sampling = Sampling(max_new_tokens=30, min_new_tokens=4, stop_when=lambda ids: ids[-1] % 3 == 0)
    found = generate(PolicyEngine(model), sampling=sampling)
    for ids, reason in zip(found.completions(), found.finish_reasons, strict=True):
        assert reason == "stop"
        assert ids[-1] % 3 == 0
        assert all(token % 3 for token in ids[4:-1])
        assert len(ids) > 4


def test_attention_and_modes_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").train()
    model.model.layers[0].eval()
    assert isolate_documents(model)
    engine = PolicyEngine(model)
    generate(engine)
    monkeypatch.setattr(Sampler, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(engine)
    assert model.config._attn_implementation == "documents"
    assert model.training
    assert not model.model.layers[0].training


def test_logits_that_are_no_numbers_stop_the_run() -> None:
    model = build("llama")
    engine = PolicyEngine(model)
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(TrainingStopped, match="not numbers"):
        generate(engine)


def test_sequences_longer_than_the_model_are_refused_or_warned_of() -> None:
    sampling = Sampling(max_new_tokens=250)
    prompts = random_prompts((20,))
    with refused("longest prompt (20)", "--max_new_tokens (250)", "GPT2LMHeadModel has 256 positions"):
        generate(PolicyEngine(build("gpt2")), prompts, sampling)
    short = build("llama", max_position_embeddings=24)
    with pytest.warns(UserWarning, match="LlamaForCausalLM has 24 positions"):
        generate(PolicyEngine(short), prompts, Sampling(max_new_tokens=8))


def test_a_device_without_float64_is_refused(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "device", torch.device("mps"))  # torch has it on a Mac only
    with pytest.raises(UserError, match="needs float64, which the device mps lacks; .* --accelerator=cpu$"):
        PolicyEngine(model)


def test_wrong_inputs_are_refused_in_one_line(model: PreTrainedModel) -> None:
    engine = PolicyEngine(model)
    with refused("prompt 1 is empty"):
        generate(engine, [[3], []])
    with refused("prompt 0", f"vocabulary of {VOCABULARY}"):
        generate(engine, [[VOCABULARY]])
    with refused("at least 1", "0 and 4"):
        generate(engine, [])
    with refused("--stop_ids", str(VOCABULARY)):
        generate(engine, sampling=Sampling(max_new_tokens=3, stop_ids=(VOCABULARY,)))
    with refused("--rollout_memory holds 60 tokens", "31", "30", "61"):
        generate(PolicyEngine(model, memory=60))
    with refused("--rollout_memory", "'4 apples'"):
        generate(PolicyEngine(model, memory="4 apples"))
    with refused("PREFIX_TUNING", "LoRA"):
        PolicyEngine(peft.get_peft_model(build("llama"), peft.PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=2)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", 9),
        ("temperature", 0.0),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("stop_ids", (-1,)),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with refused(f"--{name} must be", str(value)):
        Sampling(**({"max_new_tokens": 8} | {name: value}))


def test_settings_that_greedy_decoding_ignores_are_named() -> None:
    with pytest.warns(UserWarning, match="--greedy .*: --temperature, --top_p has no effect"):
        Sampling(max_new_tokens=8, greedy=True, temperature=0.5, top_p=0.9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_engine_says_what_generate_says() -> None:
    model, prompts = build("llama").cuda(), random_prompts()
    sampling = Sampling(max_new_tokens=20, greedy=True)
    found = generate(PolicyEngine(model, memory=200), prompts, sampling, num_samples=1)
    assert found.ids.device.type == found.logprobs.device.type == "cpu"
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for prompt, ids in zip(prompts, found.completions(), strict=True):
        expected = model.generate(torch.tensor([prompt], device="cuda"), max_new_tokens=20, **options)
        assert ids == expected[0, len(prompt) :].tolist()
