"""Scores of what a completion answers: the same text, the same number, the expected form. No algebra (see ``math``)."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from relax.errors import UserError

THINK_THEN_ANSWER = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"((?<![\w.)])-)?({_DIGITS})(?:\s*/\s*({_DIGITS}))?")
_BOX = re.compile(r"\\f?boxed\s*\{")


def exact_match(completion: str, answer: object) -> float:
    """1.0 if the completion is the answer, white space around either left aside; else 0.0."""
    return float(completion.strip() == str(answer).strip())


def number_match(completion: str, answer: object) -> float | None:
    """1.0 if the completion's last number equals the answer's, as numbers (``1,200.0`` is ``1200``, ``2/4`` is
    ``0.5``); else 0.0.

    Where a final answer is marked (see `final_answer`), on either side, only it counts. None: the answer has no number.
    """
    right = _last_number(str(answer))
    return None if right is None else float(_last_number(completion) == right)


@dataclass(frozen=True)
class RegexFormat:
    r"""1.0 if the whole completion has the form of ``pattern``, else 0.0.

    Args:
        pattern: A regular expression in which ``.`` stands for line ends too; by default
            ``<think> ... </think> <answer> ... </answer>``. One that backtracks without end is given up after the time
            limit, in its own process.

    Raises:
        UserError: It is not a regular expression.
    """

    pattern: str = THINK_THEN_ANSWER

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"--rewards: the pattern {self.pattern!r} is no regular expression: {error}") from None

    def __call__(self, completion: str) -> float:
        """The score of one completion."""
        return float(re.fullmatch(self.pattern, completion, re.DOTALL) is not None)


def final_answer(text: str) -> str | None:
    r"""What is marked as the final answer, white space around it cut off; None if nothing is.

    In this order: the last ``<answer>...</answer>``, the last ``\boxed{...}``, the line after the last ``####``.
    """
    _, opening, rest = text.rpartition("<answer>")
    if opening and "</answer>" in rest:
        return rest.partition("</answer>")[0].strip()
    boxes = list(_BOX.finditer(text))
    boxed = _to_closing_brace(text[boxes[-1].end() :]) if boxes else None
    if boxed is not None:
        return boxed.strip()
    _, mark, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0].strip() if mark else None


def _to_closing_brace(text: str) -> str | None:
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:position]
    return None


def _last_number(text: str) -> Fraction | None:
    marked = final_answer(text)
    numbers = _NUMBER.findall((text if marked is None else marked).replace("\N{MINUS SIGN}", "-"))
    if not numbers:
        return None
    sign, above, below = numbers[-1]
    value, divisor = _read(above), _read(below) if below else Fraction(1)
    return (-value if sign else value) / (divisor or 1)


def _read(digits: str) -> Fraction:
    return Fraction(Decimal(digits.replace(",", "")))  # Decimal reads any number of digits, int and Fraction 4,300
