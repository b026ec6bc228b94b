"""What is refused, and what is warned of, once a data set's rows have been counted. Touches no row."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass

from relax.data.tokens.encoding import EncodingOptions
from relax.data.tokens.tokenized import TokenizationReport
from relax.errors import UserError

ASKED_FOR = ("longer than max_length", "weight 0")
"""Reasons to leave a row out that the options ask for; the others are losses."""
_TOO_LONG = ("longer than max_length", "no training target within max_length")


@dataclass(frozen=True)
class RowChecks:
    """Judges the rows called ``where``, read with ``options``."""

    where: str
    options: EncodingOptions
    max_dropped_share: float

    def warn_of_options(self, formats: Collection[str]) -> None:
        """Warn of a setting that has no effect on rows of these formats."""
        if self.options.train_on == "last" and "tokenized" in formats:
            self._warn("--train_on=last has no effect on tokenized rows: their own labels or loss mask is used")
        if self.options.truncation != "end" and self.options.max_length is None:
            self._warn(f"--truncation={self.options.truncation} has no effect without --max_length")

    def warn_of_the_date(self, formats: Collection[str], template: object) -> None:
        """Warn of a chat template that writes the day's date: tokens then depend on when they are made."""
        if {*formats} & {"messages", "conversations"} and "strftime_now" in str(template):
            self._warn(
                "the chat template writes today's date, so that another day gives other tokens; to train, and to "
                "resume, on the same ones keep --data_cache, or give a template without the date with --chat_template"
            )

    def refuse(self, report: TokenizationReport) -> None:
        """Refuse a data set that lost too much. Rows that the options ask to leave out do not count as lost.

        Raises:
            UserError: no row is left, or more than ``max_dropped_share`` of them have nothing to learn.
        """
        dropped = {reason: count for reason, count in report.dropped.items() if count}
        lost = {reason: count for reason, count in dropped.items() if reason not in ASKED_FOR}
        longer = f"raise --max_length={self.options.max_length}, " if dropped.keys() & {*_TOO_LONG} else ""
        if not report.rows_kept:
            raise UserError(
                f"{self.where}: none of the {report.rows} rows is left to train on ({_list(dropped)}); "
                f"{longer}check the data"
            )
        if sum(lost.values()) > self.max_dropped_share * report.rows:
            raise UserError(
                f"{self.where}: {sum(lost.values())} of {report.rows} rows have nothing to learn ({_list(lost)}), more "
                f"than --max_dropped_share={self.max_dropped_share} allows; {longer}mend the data or allow a larger "
                "share"
            )

    def warn(self, report: TokenizationReport, formats: Collection[str]) -> None:
        """Warn of rows that teach no stop."""
        who = "the row's own ids or labels end" if {*formats} == {"tokenized"} else "the chat template ends"
        if report.without_end_of_turn:
            self._warn(
                f"in {report.without_end_of_turn} of {report.rows} rows {who} the last answer with no end-of-turn "
                "token that the tokenizer knows: the model will not learn to stop"
            )

    def _warn(self, message: str) -> None:
        warnings.warn(f"{self.where}: {message}", stacklevel=4)


def _list(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.items())
