"""Decoding steps that are recorded once and replayed: the same tokens, whatever changes between two steps.

On the CPU by a tape that repeats operations as a CUDA graph does; on a GPU, where there is one, by CUDA graphs.
"""

import gc
import warnings
import weakref

import pytest
import torch
from rollout_models import SERVED, build, random_prompts
from rollout_tape import Taped
from transformers import PreTrainedModel

from relax.rollout import PolicyEngine, Rollouts, Sampling, graphs
from relax.rollout.attention_choice import kept_attention
from relax.rollout.rows import Row
from relax.rollout.runners import SlotRunner
from relax.rollout.scheduler import Group
from relax.rollout.steps import rounded_columns, rounded_rows

SAMPLING = Sampling(max_new_tokens=80, stop_ids=(5, 9, 20, 40, 77))
OPTIONS = {"num_samples": 4, "sampling": SAMPLING, "seed": 3}
MEMORY = 900
"""Tokens: some rows wait for places, and columns run out."""


def sample(model: PreTrainedModel, memory: int | None = MEMORY) -> Rollouts:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it would say that nothing is recorded
        return PolicyEngine(model, memory=memory).generate(random_prompts(), num_samples=4, sampling=SAMPLING, seed=3)


def build_recordable(architecture: str) -> PreTrainedModel:
    """Experts one by one ask how many tokens each has."""
    has_experts = "experts_implementation" in SERVED[architecture][1]
    return build(architecture, **({"experts_implementation": "batched_mm"} if has_experts else {}))


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Taped:
    """The CPU becomes a device whose steps are recorded."""
    taped = Taped()
    monkeypatch.setattr(graphs, "recorder", lambda device: taped)
    return taped


@pytest.mark.parametrize("architecture", SERVED)
def test_replayed_steps_say_what_steps_computed_anew_say(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows leave and join, columns are used up and slide, windows move on: none of it is Python's to decide."""
    model = build_recordable(architecture).double()
    expected = sample(model)
    taped = Taped()
    monkeypatch.setattr(graphs, "recorder", lambda device: taped)
    found = sample(model)
    assert found.completions() == expected.completions()
    torch.testing.assert_close(
        found.logprobs, expected.logprobs, rtol=0, atol=1e-6 if "deepseek" in architecture else 1e-11
    )
    assert taped.replayed > 3 * taped.recorded > 0


def test_new_weights_and_new_memory_do_not_meet_an_old_recording(tape: Taped) -> None:
    model = build("llama").double()
    engine = PolicyEngine(model, memory=MEMORY)
    first = engine.generate(random_prompts(), **OPTIONS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    second = engine.generate(random_prompts(), **OPTIONS)
    assert first.completions() != second.completions()
    assert second.completions() == PolicyEngine(model).generate(random_prompts(), **OPTIONS).completions()


def test_a_model_that_cannot_be_recorded_is_decoded_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").double()
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * float(output.abs().max() > 0))
    expected, taped = sample(model), Taped()
    monkeypatch.setattr(graphs, "recorder", lambda device: taped)
    with pytest.warns(UserWarning, match="LlamaForCausalLM fails there .*without CUDA graphs"):
        engine = PolicyEngine(model, memory=MEMORY)
    found = engine.generate(random_prompts(), **OPTIONS)
    assert found.completions() == expected.completions()
    assert taped.replayed == 0


def test_shapes_are_few_and_hold_what_they_must() -> None:
    assert [rounded_rows(live, 48) for live in (1, 2, 3, 5, 32, 33, 48)] == [1, 2, 4, 8, 32, 48, 48]
    shapes = [rounded_columns(used, 3000) for used in range(1, 3001)]
    assert all(used <= shape <= 3000 for used, shape in enumerate(shapes, 1))
    assert all(shape - used < max(64, used / 4) for used, shape in enumerate(shapes, 1))
    assert len({*shapes}) < 25


def test_memory_is_given_back_when_the_runner_is_gone(tape: Taped) -> None:
    """At once, not when Python next looks for cycles: a training step needs it."""
    model = build("llama")
    gc.disable()
    try:
        with torch.inference_mode(), kept_attention(model):
            runner = SlotRunner(model, num_rows=2, num_columns=64, longest_prompt=8, piece_tokens=64, record=tape)
            runner.admit([Group([3, 4], [Row([3, 4], key=0)])])
            runner.decode(torch.tensor([5]), torch.tensor([2]))
        slots = weakref.ref(runner._slots)
        del runner
        assert slots() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", SERVED)
def test_cuda_graphs_say_what_steps_computed_anew_say(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, replays = build_recordable(architecture).double().cuda(), []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph))[1])
    found = sample(model)
    recorded = len({*map(id, replays)})
    assert len(replays) > 3 * recorded > 0
    monkeypatch.setattr(graphs, "recorder", lambda device: None)
    expected = sample(model)
    assert found.completions() == expected.completions()
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_leave_nothing_on_the_gpu() -> None:
    model = build("llama").cuda()
    engine = PolicyEngine(model, memory=MEMORY)
    left = []
    for _ in range(3):
        engine.generate(random_prompts(), **OPTIONS)
        left.append(torch.cuda.memory_allocated())
    assert left[1] == left[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_that_looks_at_the_gpu_in_a_step_is_decoded_without_graphs() -> None:
    """And the GPU is in order afterwards: a recording that failed has ended."""
    model = build("llama").double().cuda()
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * float(output.abs().max() > 0))
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        engine = PolicyEngine(model, memory=MEMORY)
    assert len(engine.generate(random_prompts(), **OPTIONS).lengths) == 24
