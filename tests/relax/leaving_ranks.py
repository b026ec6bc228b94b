"""Pairs of processes, for a test: one leaves while its last exchange is still under way. FOLDER PAIRS."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from relax.ranks import leave_group_at_exit

EXIT_CODE = 7


def leave(rank: int, meeting_point: Path, delay: float) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    leave_group_at_exit()
    dist.barrier()
    time.sleep(rank * delay)
    exchange = dist.all_reduce(torch.ones(1000), async_op=True)
    if rank == 1:
        exchange.wait()
    del exchange
    sys.exit(EXIT_CODE)


def main(folder: Path, pairs: int) -> None:
    for pair in range(pairs):
        children = []
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                leave(rank, folder / str(pair), delay=0.02 + 0.002 * (pair % 30))
        for child in children:
            status = os.waitpid(child, 0)[1]
            assert os.waitstatus_to_exitcode(status) == EXIT_CODE, status


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
