"""Random numbers as pure functions of where they are used: nothing to save, nothing to restore.

Order of the data = f(seed, epoch); noise of a micro-batch (dropout) = f(seed, rank, epoch, micro-batch). A resumed
run draws what the uninterrupted one would have drawn, because no generator's history matters.
"""

import hashlib
import random

import numpy as np
import torch


def mix(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order; stable across processes and versions."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(*parts: int | str) -> None:
    """Set the global generators of Python, NumPy and torch (all devices) to ``mix(*parts)``."""
    seed = mix(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # what torch.manual_seed does to the CPU, without its look for other devices: microseconds, every step
        torch.default_generator.manual_seed(seed)
