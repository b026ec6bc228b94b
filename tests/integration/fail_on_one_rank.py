"""Run by test_grpo_two_processes.py, on two ranks that Lightning starts: a reward function fails on one of them."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from grpo_runs import build, seven  # noqa: E402


def score(completion: str) -> float:
    """Not on the rank that is started last, for which the other one then waits."""
    return float("nan") if os.environ.get("LOCAL_RANK") == "1" else seven(completion)


if __name__ == "__main__":
    build(score=score, devices=2, strategy="ddp").train()
