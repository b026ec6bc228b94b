"""Whether two mathematical expressions are equal, by the package math-verify (fractions, LaTeX, sets, percent, ...)."""

import re
import warnings

from relax.rewards.optional_packages import load, require

_NUMERIC = re.compile(r"[\d\s.,+\-*/^()%]+")
_DELIMITERS = ("$", "\\boxed", "\\(", "\\[")


class MathEquivalence:
    r"""1.0 if the completion's final expression equals the answer's, else 0.0; None if the answer cannot be read.

    In a completion, ``\boxed{...}`` counts first, then LaTeX between delimiters, then plain numbers; LaTeX without
    delimiters is not seen. Answers may be bare LaTeX. There is no time limit in here: some expressions never end, so
    this is made to run in a process that can be ended, where that counts as 0.

    Raises:
        UserError: math-verify is not installed.
    """

    def __init__(self) -> None:
        require("math_verify", "math-verify[antlr4_13_2]", "math")

    def __call__(self, completion: str, answer: object) -> float | None:
        """The score of one completion."""
        math_verify = load("math_verify")
        right = self._parse(delimited(str(answer)))
        if not right:
            warnings.warn(f"reward 'math' does not apply to the answer {answer!r}: it has no expression", stacklevel=2)
            return None
        # The order matters: the answer first. Its own time limits are signals, which work in main threads only.
        return float(math_verify.verify(right, self._parse(completion), timeout_seconds=None))

    @staticmethod
    def _parse(text: str) -> list[object]:
        # no_fallback: text that is no expression would be compared as text.
        parsed: list[object] = load("math_verify").parse(text, fallback_mode="no_fallback", parsing_timeout=None)
        return parsed


def delimited(answer: str) -> str:
    """The answer as math-verify finds it: between dollars, unless it is numeric or has delimiters of its own.

    Without them ``x^2 + 1`` would be read as the number 1.
    """
    _, mark, after = answer.rpartition("####")  # GSM8K's solutions
    answer = after.strip() if mark else answer.strip()
    found = _NUMERIC.fullmatch(answer) or any(delimiter in answer for delimiter in _DELIMITERS)
    return answer if found else f"${answer}$"
