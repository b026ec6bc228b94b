"""Rows -> tokenized prompts, some hundred rows to a call of the tokenizer. Reads no files, samples nothing."""

import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from relax import checks
from relax.data.examples import Prompt, Row
from relax.data.prompts.dataset import EncodedPrompt, PromptDataset, PromptReport
from relax.data.prompts.reading import PromptReader, Readers, prompt_readers
from relax.data.prompts.writing import PromptWriter
from relax.data.rows import Mixed, Rows, at, place, whole
from relax.data.sources.dataset_rows import named
from relax.data.tokens.row_progress import count_rows
from relax.data.tokens.tokenized import Bool, Int32, Int64
from relax.errors import UserError
from relax.ranks import is_main_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_PER_CALL = 256
_Placed: TypeAlias = tuple[str, PromptReader, Row]


class _Asked(NamedTuple):
    """A row that is read, not yet tokenized."""

    place: str
    prompt: Prompt
    row: Row
    text: str


class _Gathered(NamedTuple):
    """Of all rows, R."""

    tokens: Int32
    """Of those that fit, one behind the other."""
    lengths: Int64  # [R]
    fits: Bool  # [R]
    num_texts: int
    """Prompts that are text."""


def encode_prompts(
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    data_format: str | None = None,
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    as_chat: bool = False,
    max_length: int | None = None,
    max_dropped_share: float = 0.05,
    where: str = "training data",
) -> PromptDataset:
    """Tokenize the prompts of a data set. Rows are read once for it, and again when one is asked for.

    Args:
        rows: Of any format that has a prompt in it: ``prompt`` (text, or messages that await an answer), perhaps beside
            a ``completion``; ``messages`` or ``conversations`` without the answer they end with; Alpaca's instruction;
            the prompt of a preference pair. The parts of a mixture may differ in format.
        tokenizer: With the chat template that messages are written with.
        data_format: The format's name; None: told by the columns of the first row.
        columns: Our column name, or one that a reward function asks for -> the rows' name for it.
        system_prompt: ``--system_prompt``: what a system turn before every prompt says; makes text a user's turn.
        as_chat: ``--prompts_as_chat``: a text prompt is a user's turn.
        max_length: ``--max_prompt_length``: longer prompts, in tokens, are dropped and counted.
        max_dropped_share: More of them than this share of the rows are an error.
        where: What to call the rows in messages, if they do not know where they come from.

    Raises:
        UserError: A bad row or an empty prompt (the message begins with the row's place); no rows; no column with a
            prompt; every prompt too long, or too many; no chat template where one is needed; a setting out of range.
    """
    checks.positive(max_prompt_length=max_length)
    checks.between(0, 1, max_dropped_share=max_dropped_share)
    rows = named(rows, where)
    writer = PromptWriter(tokenizer, system_prompt=system_prompt, as_chat=as_chat)
    readers = prompt_readers(rows, data_format, columns, as_chat=writer.as_chat, where=where)
    gathered = _gather(_encode_all(rows, readers, writer, where), max_length)
    if as_chat and not gathered.num_texts:
        warnings.warn(f"{where}: --prompts_as_chat has no effect: the prompts are messages already", stacklevel=2)
    _check_lengths(gathered.lengths, max_length, max_dropped_share, where)
    kept = np.flatnonzero(gathered.fits)
    return PromptDataset(
        rows=rows,
        readers=readers,
        tokens=gathered.tokens,
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(gathered.lengths[kept])]),
        source_rows=kept,
        report=PromptReport(len(rows), len(rows) - len(kept), max_length),
    )


def encode_prompt(
    row: Row,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    data_format: str | None = None,
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    as_chat: bool = False,
) -> EncodedPrompt:
    """One row, as :func:`encode_prompts` does it, whatever its length.

    Raises:
        UserError: As there.
    """
    writer = PromptWriter(tokenizer, system_prompt=system_prompt, as_chat=as_chat)
    readers = prompt_readers([row], data_format, columns, as_chat=writer.as_chat, where="data")
    [encoded] = _encode([("data:row 1", readers[0], row)], writer)
    return encoded


def _gather(prompts: Iterable[EncodedPrompt], max_length: int | None) -> _Gathered:
    tokens, lengths, num_texts = array("i"), array("q"), 0
    for encoded in prompts:
        lengths.append(len(encoded.ids))
        num_texts += isinstance(encoded.prompt, str)
        if max_length is None or len(encoded.ids) <= max_length:
            tokens.extend(encoded.ids)
    all_lengths = np.array(lengths, dtype=np.int64)
    fits = np.ones(len(lengths), dtype=np.bool_) if max_length is None else all_lengths <= max_length
    return _Gathered(np.array(tokens, dtype=np.int32), all_lengths, fits, num_texts)


def _encode_all(rows: Rows, readers: Readers, writer: PromptWriter, where: str) -> Iterator[EncodedPrompt]:
    """Every row in order, while the first process tells how far it is."""
    blocks = (_encode(block, writer) for block in _blocks(rows, readers, where))
    counted = ((len(block), block) for block in blocks)
    told = count_rows(counted, len(rows), f"Tokenizing {where}") if is_main_process() else (b for _, b in counted)
    for block in told:
        yield from block


def _blocks(rows: Rows, readers: Readers, where: str) -> Iterator[list[_Placed]]:
    behind, numbers = whole(rows)
    parts = behind.parts_of(numbers) if isinstance(behind, Mixed) else np.zeros(len(rows), dtype=np.int16)
    for start in range(0, len(rows), _ROWS_PER_CALL):
        block = range(start, min(start + _ROWS_PER_CALL, len(rows)))
        yield [(place(rows, index, where), readers[int(parts[index])], rows[index]) for index in block]


def _encode(placed: Iterable[_Placed], writer: PromptWriter) -> list[EncodedPrompt]:
    asked = [_read(*each, writer) for each in placed]
    encoded = []
    for (where, prompt, row, _), ids in zip(asked, writer.tokenize([each.text for each in asked]), strict=True):
        with at(where):
            encoded.append(EncodedPrompt(writer.finish(prompt, ids), prompt.prompt, row))
    return encoded


def _read(where: str, reader: PromptReader, bare: Row, writer: PromptWriter) -> _Asked:
    with at(where):
        row = reader.named(bare)
        prompt = reader.read(row)
    writer.require(prompt)
    with at(where):
        return _Asked(where, prompt, row, writer.write(prompt))


def _check_lengths(lengths: Int64, max_length: int | None, max_dropped_share: float, where: str) -> None:
    """Refuse a limit that leaves too little.

    Raises:
        UserError: No prompt is short enough, or too many are too long.
    """
    if max_length is None:
        return
    num_rows, too_long = len(lengths), int((lengths > max_length).sum())
    if too_long == num_rows:
        raise UserError(
            f"{where}: all {num_rows:,} prompts are longer than --max_prompt_length={max_length}, the shortest has "
            f"{lengths.min():,} tokens; raise it"
        )
    if too_long > max_dropped_share * num_rows:
        raise UserError(
            f"{where}: {too_long:,} of {num_rows:,} prompts are longer than --max_prompt_length={max_length} (the "
            f"longest has {lengths.max():,} tokens), more than --max_dropped_share={max_dropped_share} allows; raise "
            "one of the two"
        )
