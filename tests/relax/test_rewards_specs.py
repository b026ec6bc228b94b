"""``--rewards``: what can be written, and what is said to what cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import reward_functions

from relax.errors import UserError
from relax.rewards import Sample, build_rewards
from relax.rewards.specs import read_specs, split_weight


@pytest.mark.parametrize(
    ("text", "source", "weight"),
    [
        ("math", "math", 1.0),
        ("math:0.5", "math", 0.5),
        ("length=200:-1e-1", "length=200", -0.1),
        ("my.module.f:2", "my.module.f", 2.0),
        ("http=https://host/score", "http=https://host/score", 1.0),
        ("http=https://host/score:0.5", "http=https://host/score", 0.5),
        ("http=http://host:8000", "http=http://host:8000", 1.0),
        ("http=http://host:8000/score", "http=http://host:8000/score", 1.0),
        ("http=http://host:8000/score:0.5", "http=http://host:8000/score", 0.5),
    ],
)
def test_weights_are_told_from_ports(text: str, source: str, weight: float) -> None:
    assert split_weight(text) == (source, weight)


def test_all_ways_to_name_functions() -> None:
    def own(completion: str) -> float:
        return 0.0

    with_address = read_specs("exact:1.0, http=https://h/s?key=a:0.2")
    assert [(s.source, s.argument, s.weight) for s in with_address] == [
        ("exact", None, 1.0),
        ("http", "https://h/s?key=a", 0.2),
    ]
    mixed = read_specs(["exact,number:2", own, (own, 0.5), {"class_path": "format", "init_args": {"pattern": "a,b"}}])
    assert [(s.source, s.weight) for s in mixed] == [
        ("exact", 1.0),
        ("number", 2.0),
        (own, 1.0),
        (own, 0.5),
        ("format", 1.0),
    ]
    assert [s.weight for s in read_specs((own, 0.5))] == [0.5]
    assert [s.source for s in read_specs(("exact", "number"))] == ["exact", "number"]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "at least one reward function"),
        ("", "there is no reward ''"),
        ("exakt", r"no reward 'exakt'; did you mean exact\?; it may be one of exact, .* package\.module\.function"),
        ("exact:high", "the weight behind the colon must be a number, got 'high'"),
        ("exact:nan", "must be a finite number, got nan"),
        ("exact:0,number:0", "all weights are 0"),
        ("exact,exact:2", "names 'exact' 2 times; give each its own name"),
        ("exact=5", "exact is a function and takes no arguments"),
        ("reward_functions.Strict=maybe", "strict of Strict must be true or false, got 'maybe'"),
        ("length=long", "target_tokens of length must be int, got 'long'"),
        ("length", "length: missing a required argument: 'target_tokens'; its init_args may be: target_tokens"),
        ("reward_functions.lenght", "has no 'lenght'; did you mean length"),
        ("reward_functions.Uncallable", "without __call__"),
        ("relax.rewards.builtin.BUILT_IN", "is not a function or class, but dict"),
        ([5], "an entry is a name, a dotted path, a function or a mapping, got 5"),
        ([{"class_path": "exact", "wieght": 1}], r"'wieght' is not a key of a reward; did you mean weight\?"),
        ([{"weight": 1}], "a mapping holds class_path"),
        ([{"class_path": "exact", "weight": "1"}], "a mapping holds class_path"),
        ([lambda prompt: 0.0], "must take either completion .* and takes prompt"),
        ([lambda completion, completions: 0.0], "must take either completion"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(rewards: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_rewards(rewards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "skip"}, "--reward_on_error must be stop or a finite number, got 'skip'"),
        ({"on_error": float("nan")}, "--reward_on_error"),
        ({"on_error": True}, "--reward_on_error"),
        ({"time_limit_seconds": 0}, "--reward_time_limit must be above 0"),
        ({"workers": -1}, "--reward_workers"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_rewards("exact", **settings)


def test_settings_without_effect_are_told() -> None:
    with pytest.warns(UserWarning, match="--reward_workers=2 has no effect"):
        build_rewards([reward_functions.slow_length, "exact"], workers=2)
    with pytest.warns(UserWarning, match="isolated has no effect on the reward 'slow_length'"):
        build_rewards([{"class_path": reward_functions.slow_length, "isolated": True}])


def total(rewards: Any, *completions: str, **row: Any) -> list[float]:
    return build_rewards(rewards).score([Sample("p", text, row) for text in completions]).total


def test_own_functions_are_found_by_dotted_path() -> None:
    assert total("reward_functions.length:0.5", "abc") == [1.5]
    assert total("reward_functions.Scaled=2", "abc") == [6]
    assert total("reward_functions.Strict=false", "abc") == [0]
    mapping = {"class_path": "reward_functions.Scaled", "init_args": {"factor": 2, "shift": 1}, "weight": 10}
    assert total([mapping], "abc") == [70]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        (reward_functions.same, [1, 0]),
        (reward_functions.trl_style, [3, 3]),
        (reward_functions.slow_batch, [3, 2]),
        (reward_functions.slow_length, [3, 2]),
        (reward_functions.Scaled(2.0), [6, 4]),
    ],
)
def test_every_form_of_function_is_called(function: Callable[..., Any], scores: list[float]) -> None:
    assert total(function, "abc", "ab", answer="abc", level=3) == scores
