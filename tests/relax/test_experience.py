"""The experience of an iteration, and how it becomes micro-batches: every token in its place, whatever the cut."""

import io
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from conftest import build_llama

from relax.data.batching.batches import collate_packed, collate_padded
from relax.data.batching.epoch import BatchBuilder
from relax.data.batching.layout import Layout
from relax.experience import Experience, ExperienceBatches, Minibatch, Pass, plan_passes
from relax.experience.recompute import token_statistics
from relax.rollout import Rollouts

PROMPTS = [[4, 5], [6], [7, 8, 9], [4, 4, 4, 4]]
SAMPLES = 3


def experience(prompts: list[list[int]] = PROMPTS, first: int = 0) -> Experience:
    """Completions of 1 to 7 random tokens; a token's log-prob tells its completion and its place: 3.02 is 3, 2."""
    generator = torch.Generator().manual_seed(first)
    lengths = torch.randint(1, 8, (len(prompts) * SAMPLES,), generator=generator)
    ids = torch.randint(4, 14, (int(lengths.sum()),), generator=generator)
    places = [i + t / 100 for i, n in enumerate(lengths.tolist()) for t in range(n)]
    reasons: Any = ["length" if n == 7 else "stop" for n in lengths.tolist()]
    rollouts = Rollouts(ids, torch.tensor(places, dtype=torch.float64), lengths, tuple(reasons), SAMPLES)
    numbers = list(range(first, first + len(prompts)))
    scores = torch.arange(len(lengths), dtype=torch.float64)
    return Experience.of(prompts, numbers, rollouts).with_completions({"score": scores})


def builder(layout: Layout, packed: bool, rank: int = 0) -> BatchBuilder:
    return BatchBuilder(layout, rank, partial(collate_packed if packed else collate_padded, pad_id=0))


# Experience


def test_what_belongs_to_which_prompt() -> None:
    whole = experience()
    assert len(whole) == 12
    assert whole.prompt(0) == whole.prompt(2) == [4, 5]
    assert whole.prompt(11) == [4, 4, 4, 4]
    assert whole.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [token for i in range(12) for token in whole.completion(i)] == whole.ids.tolist()
    assert whole.completions["truncated"].tolist() == [n == 7 for n in whole.lengths.tolist()]


def test_parts_of_ranks_are_joined_and_groups_chosen() -> None:
    whole, more = experience(), experience([[5], [6, 6]], first=9)
    joined = Experience.joined([whole, more])
    assert joined.numbers == [0, 1, 2, 3, 9, 10]
    chosen = joined.chosen([4, 1])
    assert chosen.numbers == [9, 1]
    assert chosen.prompts == [[5], [6]]
    assert [chosen.completion(i) for i in range(6)] == [
        *(more.completion(i) for i in range(3)),
        *(whole.completion(i) for i in range(3, 6)),
    ]
    assert chosen.completions["score"].tolist() == [0, 1, 2, 3, 4, 5]
    assert chosen.tokens["logprobs"].floor().unique_consecutive().tolist() == [0, 1, 2, 3, 4, 5]
    nothing = whole.chosen([])
    assert len(Experience.joined([nothing, whole, nothing])) == 12
    assert len(Experience.joined([nothing, nothing])) == 0


def test_a_checkpoint_can_hold_it() -> None:
    whole, file = experience().with_tokens(ref_logprobs=torch.zeros(len(experience().ids))), io.BytesIO()
    assert len(whole.sequences) == 12  # what is derived from it is no part of its state
    torch.save(whole.state(), file)
    file.seek(0)
    again = Experience.from_state(torch.load(file, weights_only=True))
    assert (again.prompts, again.numbers, again.num_samples) == (whole.prompts, whole.numbers, SAMPLES)
    for column, expected in ((again.tokens, whole.tokens), (again.completions, whole.completions)):
        assert column.keys() == expected.keys()
        assert all(torch.equal(column[name], expected[name]) for name in expected)


def test_kl_is_a_mean_over_completions_of_sums_over_tokens() -> None:
    whole = experience()
    assert whole.kl() is None
    apart = whole.with_tokens(ref_logprobs=whole.tokens["logprobs"] - 0.5)
    assert apart.kl() == pytest.approx(0.5 * int(whole.lengths.sum()) / 12)


# Passes

LENGTHS = torch.tensor([5, 1, 1, 9, 2, 2, 8, 1, 3, 7, 1, 4])


def test_each_pass_has_every_completion_once_in_another_order() -> None:
    trained, idle = torch.ones(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    trained[3], idle[[5, 7]] = False, True
    steps = plan_passes(trained, idle, LENGTHS, passes=3, steps_per_pass=2, seed=1)
    assert len(steps) == 6
    for number in range(3):
        first, second = steps[2 * number : 2 * number + 2]
        assert sorted(first.completions + second.completions) == [i for i in range(12) if i != 3]
        assert sorted(first.computed + second.computed) == [i for i in range(12) if i not in (3, 5, 7)]
    assert steps[0].completions != steps[2].completions
    assert steps == plan_passes(trained, idle, LENGTHS, passes=3, steps_per_pass=2, seed=1)
    assert steps != plan_passes(trained, idle, LENGTHS, passes=3, steps_per_pass=2, seed=2)


@pytest.mark.parametrize(("count", "parts"), [(64, 4), (64, 1), (10, 4), (2, 3)])
def test_the_steps_of_a_pass_are_alike_in_number_and_in_tokens(count: int, parts: int) -> None:
    lengths = torch.randint(1, 200, (count,), generator=torch.Generator().manual_seed(count))
    everything, nothing = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    steps = plan_passes(everything, nothing, lengths, passes=2, steps_per_pass=parts, seed=1)
    assert len(steps) == 2 * parts
    for one in (steps[:parts], steps[parts:]):
        assert sorted(i for step in one for i in step.completions) == list(range(count))
        counts = [len(step.completions) for step in one]
        tokens = [int(lengths[step.completions].sum()) for step in one]
        assert max(counts) - min(counts) <= 1
        assert max(tokens) - min(tokens) <= int(lengths.max()), "they differ by less than one completion"
    if count == 64 and parts == 4:
        together = {frozenset(step.completions) for step in steps}
        assert len(together) == 8, "in another pass other completions are learned from together"


# Micro-batches

LAYOUTS = {
    "one": Layout(6, 6, 1, 1),
    "three": Layout(6, 2, 3, 1),
    "two ranks": Layout(6, 1, 3, 2),
    "budget": Layout(6, None, 6, 1, max_tokens=11),
}


def micro_batches(whole: Experience, steps: list[Pass], layout: Layout, packed: bool) -> list[list[Minibatch]]:
    """Of every rank."""
    ranks = [builder(layout, packed, rank) for rank in range(layout.world_size)]
    data = [ExperienceBatches(whole, steps, each, max_tokens=7) for each in ranks]
    return [[batches[i] for i in range(len(batches))] for batches in data]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_token_keeps_what_is_known_of_it(name: str, packed: bool) -> None:
    whole, layout = experience(), LAYOUTS[name]
    steps = [Pass([*range(0, 12, 2)], [0, 2, 4, 8]), Pass([*range(1, 12, 2)], [*range(1, 12, 2)])]
    seen: Counter[tuple[int, float]] = Counter()
    for rank in micro_batches(whole, steps, layout, packed):
        assert len(rank) == 2 * layout.accumulate
        for index, batch in enumerate(rank):
            step = steps[index // layout.accumulate]
            assert batch.fresh == (index < layout.accumulate)
            assert batch.learns
            lengths = [int(whole.lengths[i]) for i in step.completions]
            assert (batch.totals.sequences, batch.totals.tokens) == (6, sum(lengths))
            assert batch.totals.max_tokens == 7
            if not batch.num_tokens:
                assert batch.totals.micro_batches == 0  # it fills the step up: all it has is multiplied by 0
                continue
            assert batch.totals.micro_batches == layout.micro_batches
            assert batch.computed_tokens == sum(int(whole.lengths[i]) for i in step.computed)
            check_tokens(whole, batch)
            chosen = [row - 1 for row in batch.rows]
            seen.update((index // layout.accumulate, i) for i in chosen)
            assert batch.completions["score"].tolist() == chosen
    assert seen == Counter((number, i) for number, step in enumerate(steps) for i in step.computed)


def check_tokens(whole: Experience, batch: Minibatch) -> None:
    """Targets, owners, lengths and columns tell of the same tokens."""
    assert batch.segments.lengths.tolist() == [int(whole.lengths[row - 1]) for row in batch.rows]
    expected = [token for row in batch.rows for token in whole.completion(row - 1)]
    assert batch.batch.targets.tolist() == expected
    owners = [batch.rows[i] - 1 for i in batch.segments.owners.tolist()]
    assert owners == [int(x) for x in batch.tokens["logprobs"]]
    within = [t for row in batch.rows for t in range(int(whole.lengths[row - 1]))]
    assert [round(100 * (float(x) % 1)) for x in batch.tokens["logprobs"]] == within
    # The state that predicts a completion's first token is that of the prompt's last one.
    ids, at = batch.input_ids.flatten(), batch.batch.positions
    firsts = [i for i, t in enumerate(within) if t == 0]
    assert [int(ids[at[i]]) for i in firsts] == [whole.prompt(row - 1)[-1] for row in batch.rows]


def test_a_step_without_anything_to_learn_has_no_weight() -> None:
    whole = experience()
    for batch in micro_batches(whole, [Pass([1, 2, 3], []), Pass([], [])], LAYOUTS["three"], packed=True)[0]:
        assert not batch.learns
        assert batch.totals.micro_batches == 0
        assert batch.totals.tokens >= 1
        assert batch.computed_tokens == 1


def test_moving_a_micro_batch_moves_all_of_it() -> None:
    batch = micro_batches(experience(), [Pass([*range(6)], [*range(6)])], LAYOUTS["one"], packed=True)[0][0]
    moved = batch.to("meta")
    tensors = [moved.input_ids, moved.lengths, *moved.segments, *moved.tokens.values(), *moved.completions.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.rows, moved.fresh, moved.totals) == (batch.rows, True, batch.totals)
    assert batch.input_ids.device.type == "cpu"


# Read once more


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cut", [Layout(12, 5, 3, 1), Layout(12, None, 9, 1, max_tokens=12), Layout(12, 2, 3, 2)])
def test_statistics_come_in_the_order_of_the_experience(cut: Layout, packed: bool) -> None:
    whole, model, chosen = experience(), build_llama(initializer_range=0.4).double(), [1, 2, 5, 6, 7, 11]
    model.train()
    settings: dict[str, Any] = {"builder": builder(cut, packed=packed), "device": torch.device("cpu")}
    if packed:
        from relax import causal_lm

        assert causal_lm.isolate_documents(model)
    logprobs, entropies = token_statistics(model, whole, chosen, temperature=0.7, **settings)
    assert model.training
    found = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    plain = build_llama(initializer_range=0.4).double().eval()
    for i in chosen:
        ids = torch.tensor([whole.prompt(i) + whole.completion(i)])
        with torch.no_grad():
            rows = (plain(ids).logits[0, len(whole.prompt(i)) - 1 : -1] / 0.7).log_softmax(-1)
        found[0].append(rows.gather(1, torch.tensor(whole.completion(i))[:, None])[:, 0])
        found[1].append(-(rows.exp() * rows).sum(-1))
    torch.testing.assert_close(logprobs, torch.cat(found[0]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(entropies, torch.cat(found[1]), rtol=1e-11, atol=1e-12)
    assert not len(token_statistics(model, whole, [], temperature=1.0, **settings)[0])
