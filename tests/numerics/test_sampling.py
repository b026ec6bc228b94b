"""The distribution that tokens are drawn from, against theory and against transformers' own filters."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from relax.rollout.drawing import (
    BLOCK_TOKENS,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    most_likely,
    penalize_repetition,
)
from relax.rollout.noise import stream_keys, uniforms


def reference_uniform(key: int, position: int) -> float:
    """splitmix64 in Python's own integers."""
    mask = 2**64 - 1
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (((z ^ (z >> 31)) >> 12) + 0.5) / 2**52


def noise(count: int, seed: int = 0, positions: int = 1) -> torch.Tensor:
    """[count x positions] as the engine would make it, a row for each of ``count`` completions."""
    keys = torch.tensor(stream_keys(seed, 0, ((row // 8, row % 8) for row in range(count))))
    ages = torch.arange(positions).repeat_interleave(count)
    return uniforms(keys.repeat(positions), ages)


def chi_square_p(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Of counts against expectations; tokens expected fewer than five times are counted together."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(tokens)
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).numpy()
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]]).numpy()
    keep = wanted > 0
    return float(stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue)


def test_a_number_is_the_published_function_of_its_place() -> None:
    keys = stream_keys(3, 1, [(0, 0), (0, 1), (1, 0)])
    assert len({*keys, *stream_keys(3, 2, [(0, 0)]), *stream_keys(4, 1, [(0, 0)])}) == 5
    found = uniforms(torch.tensor(keys).repeat(4), torch.arange(4).repeat_interleave(3))
    expected = [reference_uniform(key, position) for position in range(4) for key in keys]
    assert found.tolist() == expected


def test_the_numbers_are_uniform_and_independent_of_their_neighbours() -> None:
    numbers = noise(2048, positions=64)
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    grid = numbers.view(64, 2048).numpy() - 0.5
    for shifted in (grid[1:] * grid[:-1], grid[:, 1:] * grid[:, :-1]):  # the next position, the next sample
        assert abs(shifted.mean()) < 4 * (1 / 12) / math.sqrt(shifted.size)


@pytest.mark.parametrize("vocabulary", [16, 1003, 1536])
def test_tokens_come_as_often_as_they_should(vocabulary: int) -> None:
    """Over 200 seeds the p-values of a chi-square test are uniform, as they are if and only if nothing is wrong."""
    torch.manual_seed(vocabulary)
    logits = torch.randn(1, vocabulary) * 2
    values = []
    for seed in range(200):
        tokens, _ = draw(logits.expand(1000, -1), noise(1000, seed))
        values.append(chi_square_p(tokens, logits[0].double().softmax(-1)))
    assert stats.kstest(values, "uniform").pvalue > 1e-3, np.quantile(values, [0.05, 0.5, 0.95])


def intervals(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the unit interval draws each token of logits [V]: begin and size [V], fp64, as the two levels define it."""
    blocks = torch.nn.functional.pad((logits - logits.max()).exp(), (0, -len(logits) % BLOCK_TOKENS))
    blocks = blocks.view(-1, BLOCK_TOKENS)
    masses, inside = blocks.sum(-1).double(), blocks.double()
    scale = (masses / inside.sum(-1))[:, None] / masses.sum()
    begins = (masses.cumsum(-1) - masses)[:, None] / masses.sum() + (inside.cumsum(-1) - inside) * scale
    return begins.flatten()[: len(logits)], (inside * scale).flatten()[: len(logits)]


def test_every_token_of_a_large_vocabulary_can_be_drawn() -> None:
    """And its share of the unit interval is right, where a cumulative sum in fp32 loses thousands of tokens."""
    vocabulary = 151_936
    torch.manual_seed(0)
    logits = torch.randn(vocabulary) * 3
    exact = logits.double().softmax(-1)
    begins, sizes = intervals(logits)
    torch.testing.assert_close(sizes, exact, rtol=2e-6, atol=0)
    for part in torch.arange(vocabulary).split(64)[::37]:  # every 37th run of 64 neighbours
        tokens, logprobs = draw(logits.expand(len(part), -1), (begins + sizes / 2)[part])
        assert tokens.tolist() == part.tolist()
        torch.testing.assert_close(logprobs.double(), exact[part].log(), rtol=0, atol=2e-6)
    plain = logits.softmax(-1).cumsum(-1)
    assert (plain.diff() <= 0).sum() > 1000, "the pitfall is real"


def test_the_borders_of_the_interval_draw_real_tokens() -> None:
    logits = torch.full((3, 1030), -torch.inf)
    logits[:, 700] = 0.0
    logits[1:, 5] = 2.0
    logits[2, 1029] = -40.0
    tokens, logprobs = draw(logits, torch.tensor([0.5, 2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert tokens.tolist() == [700, 5, 700]
    assert logprobs[0] == 0
    tokens, _ = draw(logits[:1].expand(2, -1), torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert tokens.tolist() == [700, 700]


def test_a_row_draws_the_same_whatever_lies_beside_it() -> None:
    torch.manual_seed(0)
    logits, numbers = torch.randn(64, 5000), noise(64)
    order = torch.randperm(64)
    tokens, logprobs = draw(logits, numbers)
    for rows in (order, order[:3]):
        some_tokens, some_logprobs = draw(logits[rows], numbers[rows])
        assert torch.equal(some_tokens, tokens[rows])
        assert torch.equal(some_logprobs, logprobs[rows])


def test_log_probs_are_those_of_the_distribution_in_either_precision() -> None:
    torch.manual_seed(0)
    logits = torch.randn(32, 3000, dtype=torch.float64) * 4
    exact = logits.log_softmax(-1)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 4e-6)):
        tokens, logprobs = draw(logits.to(dtype), noise(32))
        assert logprobs.dtype == dtype
        torch.testing.assert_close(logprobs.double(), exact.gather(-1, tokens[:, None])[:, 0], rtol=0, atol=tolerance)
    tokens, logprobs = most_likely(logits)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, exact.amax(-1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_the_filters_are_transformers(vocabulary: int) -> None:
    torch.manual_seed(0)
    ids = torch.randint(vocabulary, (16, 12))
    logits = torch.randn(16, vocabulary) * torch.linspace(0.1, 6, 16)[:, None]
    assert torch.equal(keep_top_k(logits, 7), TopKLogitsWarper(7)(ids, logits))
    assert torch.equal(keep_top_k(logits, 2 * vocabulary), logits)
    for p in (0.01, 0.5, 0.9, 0.99):
        assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(ids, logits))
        assert torch.equal(keep_min_p(logits, p), MinPLogitsWarper(p)(ids, logits))
    seen = torch.zeros(16, vocabulary, dtype=torch.bool).scatter(1, ids, True)
    ours = penalize_repetition(logits, seen, 1.3)
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(1.3)(ids, logits), rtol=0, atol=0)


def test_filters_one_after_another_are_transformers() -> None:
    torch.manual_seed(0)
    ids, logits = torch.zeros(16, 1, dtype=torch.int64), torch.randn(16, 400) * 3
    theirs = MinPLogitsWarper(0.05)(ids, TopPLogitsWarper(0.8)(ids, TopKLogitsWarper(40)(ids, logits)))
    assert torch.equal(keep_min_p(keep_top_p(keep_top_k(logits, 40), 0.8), 0.05), theirs)
