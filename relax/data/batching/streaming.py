"""Rows that are read, shuffled, tokenized and batched while training runs: for what does not fit on the disk, or cannot
be waited for. Every rank reads the whole stream and keeps its own micro-batches.

A row's place in the order is a function of (seed, epoch): the stream is cut into blocks of ``shuffle_buffer`` rows,
each shuffled by itself. So to resume is to skip to the block, shuffle it again, and skip what had been read of it.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset

from relax.data.batching.batches import Batch
from relax.data.batching.epoch import BatchBuilder
from relax.data.batching.planning import Step
from relax.data.examples import Row
from relax.data.sources.streams import RowStream
from relax.data.tokens.cache_key import describe_tokenizer
from relax.data.tokens.encoding import EncodingOptions, RowEncoder
from relax.data.tokens.row_checks import ASKED_FOR
from relax.data.tokens.tokenized import Sample, TokenizedDataset
from relax.errors import TrainingStopped, UserError
from relax.seeding import mix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SURE = 1000  # rows after which a share of dropped ones says something


class Read(NamedTuple):
    """A sample, its row's number in the stream (counted from 0), and how many rows of the epoch were read with it."""

    sample: Sample
    number: int
    rows_read: int


@dataclass
class SampleStream:
    """Tokenized rows of a stream, epoch by epoch.

    Args:
        rows: the stream.
        tokenizer: its tokenizer.
        options: how rows are read.
        where: what to call them in messages.
        seed: of the shuffling.
        shuffle_buffer: rows that are shuffled together and held in memory; 1 keeps the stream's order.
        max_dropped_share: more rows without a target than this share end the run.

    Raises:
        UserError: the stream is empty, or its first row is of no known format.
    """

    rows: RowStream
    tokenizer: "PreTrainedTokenizerBase"
    options: EncodingOptions
    where: str = "data"
    seed: int = 0
    shuffle_buffer: int = 10_000
    max_dropped_share: float = 0.05
    first_row: Row = field(init=False)

    def __post_init__(self) -> None:
        first = next(iter(self.rows.read()), None)
        if first is None:
            raise UserError(f"{self.where}: the stream holds no rows")
        self.first_row = first[1]
        RowEncoder(self.first_row, self.tokenizer, self.options, first[0])

    @property
    def fingerprint(self) -> str:
        """What the order and the content of the samples depend on."""
        described = describe_tokenizer(self.tokenizer) if self.tokenizer.is_fast else {}
        settings = [self.shuffle_buffer, str(self.options), described]
        read_with = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        return f"stream {self.rows.identity}, read with settings and tokenizer {read_with}"

    def read(self, epoch: int, skip: int = 0) -> Iterator["Read"]:
        """The samples of an epoch, after its first ``skip`` rows.

        Raises:
            UserError: a row that cannot be used.
            TrainingStopped: too many rows have nothing to learn.
        """
        encoder = RowEncoder(self.first_row, self.tokenizer, self.options, self.where)
        read, kept, dropped, reason = skip, 0, 0, ""
        numbers: deque[int] = deque()
        for encoded in encoder.encode(self._shuffled(epoch, skip, numbers)):
            read, number = read + 1, numbers.popleft()
            if encoded.sample is not None:
                kept += 1
                yield Read(encoded.sample, number, read)
                continue
            reason = encoded.reason
            dropped += reason not in ASKED_FOR
            if read - skip >= _SURE:
                self._check_dropped(dropped, read - skip, reason)
        if skip:  # what is left after a resume may be too little to judge by
            return
        if not kept:
            raise TrainingStopped(f"{self.where}: none of {read} rows has something to learn ({reason}, for example)")
        self._check_dropped(dropped, read, reason)

    def _check_dropped(self, dropped: int, read: int, reason: str) -> None:
        if dropped > self.max_dropped_share * read:
            raise TrainingStopped(
                f"{self.where}: {dropped} of {read} rows have nothing to learn ({reason}, for example), "
                f"more than --max_dropped_share={self.max_dropped_share} allows"
            )

    def sample(self, count: int) -> TokenizedDataset:
        """The first ``count`` rows of the stream, for a look at them.

        Raises:
            UserError: a row that cannot be used, or none of them has something to learn.
        """
        from relax.data.tokens.tokenization import tokenize_rows

        rows = [row for _, row in islice(self.rows.read(), count)]
        where = f"first {len(rows)} rows of the {self.where}"
        return tokenize_rows(rows, self.tokenizer, self.options, where=where, max_dropped_share=1.0, workers=0)

    def _shuffled(self, epoch: int, skip: int, numbers: deque[int]) -> Iterator[tuple[str, Row]]:
        """Rows with their places; their numbers in the stream, counted from 0, go to ``numbers``."""
        block, done = divmod(skip, self.shuffle_buffer)
        rows = self.rows.read(block * self.shuffle_buffer)
        while buffer := [*islice(rows, self.shuffle_buffer)]:
            order = np.random.default_rng(mix(self.seed, "stream", epoch, block)).permutation(len(buffer))
            for i in order[done:].tolist():
                numbers.append(block * self.shuffle_buffer + i)
                yield buffer[i]
            block, done = block + 1, 0


@dataclass(frozen=True)
class StreamedBatches:
    """The micro-batches of a stream on one rank; how many an epoch has is known at its end."""

    samples: SampleStream
    builder: BatchBuilder

    @property
    def micro_batches(self) -> None:
        """Not known."""
        return None

    def open(self, epoch: int, position: int, rows_read: int) -> "_Stream":
        """The micro-batches of an epoch after its first ``rows_read`` rows."""
        return _Stream(self, epoch, rows_read)


class _Stream(IterableDataset[Batch | UserError | TrainingStopped]):
    def __init__(self, source: StreamedBatches, epoch: int, skip: int) -> None:
        self.source, self.epoch, self.skip = source, epoch, skip

    def __iter__(self) -> Iterator[Batch | UserError | TrainingStopped]:
        try:
            yield from self._batches()
        except (UserError, TrainingStopped) as error:
            yield error  # raised by a worker process it would reach the user as a traceback

    def _batches(self) -> Iterator[Batch]:
        builder = self.source.builder
        samples = self.source.samples.read(self.epoch, self.skip)
        while chunk := [*islice(samples, builder.layout.batch_size)]:
            data = TokenizedDataset.from_samples([read.sample for read in chunk], [read.number for read in chunk])
            step = Step(np.arange(len(data)), np.arange(len(data)))
            cut = builder.layout.cut(step, data.lengths)
            for slot in range(builder.layout.accumulate):
                yield replace(builder.build(data, step, cut, slot), stream_position=chunk[-1].rows_read)
