"""Scores of answers: text, numbers, form."""

import time

import pytest

from relax.errors import UserError
from relax.rewards.answers import RegexFormat, exact_match, final_answer, number_match


def test_exact_match_leaves_only_outer_white_space_aside() -> None:
    assert exact_match(" 42\n", "42") == 1.0
    assert exact_match("42", 42) == 1.0, "JSON numbers are answers too"
    assert exact_match("4 2", "42") == 0.0
    assert exact_match("It is 42", "42") == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("so 12 + 30 makes 42.", "42", 1.0),
        ("it costs $1,200.00", "1200", 1.0),
        ("1,200", "... all told\n#### 1,200", 1.0),
        ("#### 42\nand 7 more", "42", 1.0),
        ("<answer>42</answer> (of 50)", "42", 1.0),
        (r"first \boxed{1}, no, \boxed{\frac{42}{1} = 42} after 3 tries", "42", 1.0),
        ("2/4", "0.5", 1.0),
        ("1/4", "3/4", 0.0),
        ("-5", "5", 0.0),
        ("\N{MINUS SIGN}5", "-5", 1.0),
        ("10-5", "5", 1.0),
        ("x-5", "5", 1.0),
        ("42, not 43", "42", 0.0),
        ("none", "42", 0.0),
        ("", "42", 0.0),
        ("7", "0" * 5000 + "7", 1.0),
        ("1" * 5000, "1" * 5000, 1.0),
        ("1/0", "1", 1.0),
        ("1.5.", 1.5, 1.0),
        ("42", "no number", None),
    ],
)
def test_number_match(completion: str, answer: object, score: float | None) -> None:
    assert number_match(completion, answer) == score


def test_numbers_are_found_in_linear_time() -> None:
    start = time.perf_counter()
    number_match("1," * 100_000 + "/" * 100_000 + "1 " * 100_000 + " " * 100_000, "1")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> a </answer> then <answer>b</answer>", "b"),
        (r"\boxed{a} <answer>b</answer>", "b"),
        (r"\boxed{\frac{1}{2}} end}", r"\frac{1}{2}"),
        (r"\boxed{never closed", None),
        ("so\n#### 7\nmore", "7"),
        ("#### ", ""),
        ("<answer>never closed", None),
        ("7", None),
    ],
)
def test_the_final_answer_is_what_is_marked_so(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_format_is_of_the_whole_completion() -> None:
    score = RegexFormat()
    assert score("<think>a\nb</think>\n<answer>c</answer>\n") == 1.0
    assert score("<answer>c</answer>") == 0.0
    assert score("<think>a</think><answer>c</answer> and more") == 0.0
    assert RegexFormat(r"\d+")("12") == 1.0
    assert RegexFormat(r"\d+")("12a") == 0.0


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"--rewards: the pattern '\(' is no regular expression: missing \)"):
        RegexFormat("(")
