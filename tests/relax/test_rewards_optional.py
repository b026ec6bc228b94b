"""Rewards that need a package: what is said without it, and with it, that it is asked in the right way."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from relax.errors import UserError
from relax.rewards import Sample, build_rewards, task_rows
from relax.rewards.math_equivalence import MathEquivalence, delimited
from relax.rewards.reasoning_tasks import ReasoningGym


@pytest.mark.parametrize(
    ("build", "package"),
    [
        (lambda: build_rewards("math"), "math-verify"),
        (lambda: build_rewards("reasoning_gym"), "reasoning-gym"),
        (lambda: task_rows("chain_sum", 1), "reasoning-gym"),
    ],
)
def test_a_package_that_is_missing_is_named(
    build: Callable[[], Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs {package}.*, which is not installed: pip install"):
        build()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1,200.5", "1,200.5"),
        ("3/4", "3/4"),
        ("50%", "50%"),
        ("so 6 * 7 = 42\n#### 42", "42"),
        (r"\frac{1}{2}", r"$\frac{1}{2}$"),
        ("x^2 + 1", "$x^2 + 1$"),
        (r"$\pi$", r"$\pi$"),
        (r"\boxed{7}", r"\boxed{7}"),
    ],
)
def test_answers_get_the_delimiters_that_the_parser_needs(answer: str, text: str) -> None:
    assert delimited(answer) == text


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (r"so it is \boxed{\frac{2}{4}}", r"\frac{1}{2}", 1.0),
        ("it is $0.5$", "1/2", 1.0),
        ("The answer is 1,200.", "1200", 1.0),
        (r"\boxed{(x+1)^2}", "x^2 + 2x + 1", 1.0),
        (r"\boxed{x^2}", "x^2 + 1", 0.0),
        (r"\boxed{3}", "4", 0.0),
        ("I do not know", "4", 0.0),
        ("", "4", 0.0),
    ],
)
def test_math_equivalence(completion: str, answer: str, score: float) -> None:
    pytest.importorskip("math_verify")
    assert MathEquivalence()(completion, answer) == score
    with build_rewards("math", workers=1) as rewards:
        assert rewards.score([Sample("p", completion, {"answer": answer})]).total == [score]


def test_an_answer_without_an_expression_does_not_apply() -> None:
    pytest.importorskip("math_verify")
    with pytest.warns(UserWarning, match="does not apply to the answer ''"):
        assert MathEquivalence()("4", "") is None


def test_reasoning_gym_scores_the_final_answer_of_its_own_rows() -> None:
    pytest.importorskip("reasoning_gym")
    rows = task_rows("chain_sum", 20, seed=1, max_terms=3)
    assert rows == task_rows("chain_sum", 20, seed=1, max_terms=3)
    prompts = [{row["prompt"] for row in task_rows("chain_sum", 20, seed=seed)} for seed in (1, 2)]
    assert len(prompts[0] & prompts[1]) < 3
    right = [f"<think>3</think> <answer>{row['answer']}</answer>" for row in rows]
    lists = [f"{row['answer']} or {int(row['answer']) + 1}" for row in rows]
    with build_rewards("reasoning_gym", workers=1) as rewards:
        for completions, score in ((right, 1.0), ([row["answer"] for row in rows], 1.0), (lists, 0.0)):
            samples = [Sample(row["prompt"], text, row) for row, text in zip(rows, completions, strict=True)]
            assert rewards.score(samples).total == [score] * 20


def test_reasoning_gym_settings_are_checked() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=r"no task 'chain_sums'; did you mean chain_sum\?"):
        task_rows("chain_sums", 1)
    with pytest.raises(UserError, match="does not take .*max_term"):
        task_rows("chain_sum", 1, max_term=3)
    row = task_rows("chain_sum", 1)[0]
    columns = {name: row[name] for name in ("question", "answer", "metadata", "reasoning_gym_task")}
    assert ReasoningGym(partial=True)(row["answer"], **columns) == 1.0
