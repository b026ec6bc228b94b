"""How much memory a run has taken at most."""

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that tensors took on a CUDA device; elsewhere the most that this process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
