"""Packing a million rows: seconds, and how full the bins are, of ReLax and of TRL's ``pack_dataset(strategy="bfd")``.

    python benchmarks/packing.py --quick

Lengths are log-normal, as those of chats are: median 350 tokens, mean 480, none longer than a bin. ReLax plans with
lengths alone and reads the tokens when it builds a batch. TRL copies every row's tokens into a new data set, a thousand
rows at a time; so its algorithm is also timed by itself, over all rows at once, with the copying patched out. The data
set that TRL is given holds ``input_ids`` only: the labels, which it has to copy as well, are left out.
"""

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from side_by_side import (
    PACKAGES,
    Contender,
    PeakMemory,
    benchmark_arguments,
    paired_ratio,
    print_machine,
    print_table,
    take_turns,
    write_json,
)

from relax.data.batching.packing import best_fit_decreasing
from relax.data.batching.planning import Batching, Plan
from relax.data.tokens.tokenized import RowFacts, TokenizationReport, TokenizedDataset

Int64 = npt.NDArray[np.int64]
Turn = dict[str, float]
SEED = 0
QUICK_ROWS = 50_000
RELAX = "ReLax, best_fit_decreasing"
RELAX_EPOCH = "ReLax, an epoch of SFTTrainer: shuffled, packed, in steps of 16"
TRL_ALGORITHM = "TRL, its algorithm by itself, all rows at once"
TRL = "TRL, pack_dataset(bfd) as it comes"


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--capacity", type=int, nargs="+", default=[1024, 4096], help="tokens of a bin")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = min(options.rows, QUICK_ROWS), 1
    if options.contender:
        take_turns(lambda capacity: CONTENDERS[options.contender](chat_lengths(options.rows, int(capacity))))
    packages = (*PACKAGES, "trl", "datasets", "pyarrow") if find_spec("trl") else PACKAGES
    machine = print_machine(options.threads, packages)
    everything = {capacity: compare(capacity, options) for capacity in options.capacity}
    write_json(options.json, machine, everything)


def chat_lengths(rows: int, capacity: int) -> tuple[Int64, int]:
    """Tokens of each row, and of a bin."""
    lengths = np.random.default_rng(SEED).lognormal(np.log(350), 0.8, rows)
    return lengths.round().clip(8, capacity).astype(np.int64), capacity


def pack_relax(job: tuple[Int64, int]) -> Turn:
    lengths, capacity = job
    return measured(lambda: int(best_fit_decreasing(lengths, capacity).max()) + 1, job)


def plan_relax(job: tuple[Int64, int]) -> Turn:
    lengths, capacity = job
    weights, digests = np.ones(len(lengths), dtype=np.float32), np.zeros(len(lengths), dtype="V16")
    facts = RowFacts(lengths, lengths - 1, np.arange(len(lengths)), weights, digests)
    tokens = np.zeros(lengths.sum(), dtype=np.int32)  # takes no memory until it is read, which planning does not
    data = TokenizedDataset.assemble(tokens, np.zeros(len(tokens), dtype=np.bool_), facts, TokenizationReport())

    def plan() -> int:
        steps = Plan(data, Batching(batch_size=16, seed=SEED, packing_length=capacity)).steps(epoch=0)
        return sum(int(step.sequences[-1]) + 1 for step in steps)

    return measured(plan, job)


def pack_trl_algorithm(job: tuple[Int64, int]) -> Turn:
    import pyarrow as pa
    from trl import data_utils

    lengths, capacity = job
    nothing = pa.nulls(int(lengths.sum()))  # takes no memory, however long
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(np.cumsum([0, *lengths.tolist()]), nothing)})
    take = data_utils.pc.take  # sorts the lengths, too: only whole rows stay where they are
    taken = patch.object(data_utils.pc, "take", lambda rows, at: rows if isinstance(rows, pa.Table) else take(rows, at))
    with taken, patch.object(data_utils.pc, "filter", lambda rows, _: rows):
        return measured(lambda: len(data_utils._pack_bfd(table, capacity)), job)


def pack_trl(job: tuple[Int64, int]) -> Turn:
    import datasets
    from trl import pack_dataset

    lengths, capacity = job
    datasets.disable_progress_bars()
    with TemporaryDirectory(prefix="packing-") as folder:  # the tokens lie on disk, where tokenization has left them
        write_tokens(Path(folder) / "rows.arrow", lengths)
        dataset = datasets.Dataset.from_file(f"{folder}/rows.arrow")
        return measured(lambda: len(pack_dataset(dataset, capacity, "bfd")), job)


def write_tokens(path: Path, lengths: Int64, rows_a_batch: int = 1000) -> None:
    """An Arrow file of rows of the token 0, in batches as ``datasets`` writes them."""
    import pyarrow as pa

    schema = pa.schema({"input_ids": pa.list_(pa.int32())})
    with pa.ipc.new_stream(path, schema) as stream:
        for start in range(0, len(lengths), rows_a_batch):
            offsets = np.cumsum([0, *lengths[start : start + rows_a_batch].tolist()]).astype(np.int32)
            rows = pa.ListArray.from_arrays(offsets, np.zeros(offsets[-1], dtype=np.int32))
            stream.write_batch(pa.record_batch([rows], schema=schema))


def measured(pack: Callable[[], int], job: tuple[Int64, int]) -> Turn:
    """What packing took; ``pack`` returns the number of bins."""
    lengths, capacity = job
    peak = PeakMemory()
    peak.start()
    wall, cpu = time.perf_counter(), time.process_time()
    bins = pack()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    fill = int(lengths.sum()) / (bins * capacity)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_mb": peak.extra_mb(), "bins": bins, "fill": fill}


CONTENDERS: dict[str, Callable[[tuple[Int64, int]], Turn]] = {
    RELAX: pack_relax,
    RELAX_EPOCH: plan_relax,
    TRL_ALGORITHM: pack_trl_algorithm,
    TRL: pack_trl,
}


def compare(capacity: int, options: argparse.Namespace) -> dict[str, list[Turn]]:
    names = [name for name in CONTENDERS if find_spec("trl") or not name.startswith("TRL")]
    contenders = [Contender(name, options.threads) for name in names]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for contender in contenders:
            os.sync()  # what the one before wrote must not be paid for by this one
            turns[contender.name].append(contender.measure(str(capacity)))
    for contender in contenders:
        contender.stop()
    report(f"{options.rows:,} rows into bins of {capacity:,}", turns)
    return turns


def report(title: str, turns: dict[str, list[Turn]]) -> None:
    def column(name: str, figure: str) -> list[float]:
        return [turn[figure] for turn in turns[name]]

    rows = [
        [
            name,
            f"{median(column(name, 'seconds')):.2f}",
            f"{median(column(name, 'cpu_seconds')):.2f}",
            f"{paired_ratio(column(name, 'seconds'), column(RELAX, 'seconds')):.1f}",
            f"{median(column(name, 'extra_mb')):,.0f}",
            f"{turns[name][0]['bins']:,.0f}",
            f"{turns[name][0]['fill']:.2%}",
        ]
        for name in turns
    ]
    print_table([title, "seconds", "CPU seconds", "of ReLax's seconds", "extra peak MB", "bins", "full"], rows)


if __name__ == "__main__":
    main()
