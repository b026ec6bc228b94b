"""How many rows fit into memory."""

import re

import torch

from relax.errors import UserError

_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_CPU_BYTES = 2**30
_CUDA_SHARE = 0.5
"""Of what is free when generation starts; prompts and logits need the rest."""
SLACK_COLUMNS = 64
"""Where rows join late, columns beyond the longest sequence: memory is moved once for so many steps."""


def budget_tokens(memory: int | str | None, token_bytes: int, device: torch.device) -> int:
    """Tokens whose keys and values may be kept at one time.

    Args:
        memory: tokens; or bytes, such as ``"4GB"`` or ``"512MiB"``; or None: 1 GiB on the CPU, half of what is free on
            a GPU.
        token_bytes: memory of one token.
        device: where it lies.

    Raises:
        UserError: ``memory`` is neither.
    """
    if isinstance(memory, int):
        if memory < 1:
            raise UserError(f"--rollout_memory must be at least 1 token; got {memory}")
        return memory
    return int(_bytes(memory, device)) // token_bytes


def plan_slots(budget: int, num_rows: int, longest_prompt: int, longest_completion: int) -> tuple[int, int]:
    """How many slots of how many columns (tokens) ``num_rows`` completions get out of ``budget`` tokens.

    Raises:
        UserError: not even one row fits.
    """
    columns = longest_prompt + longest_completion
    if num_rows * columns <= budget:
        return num_rows, columns
    if columns > budget:
        raise UserError(
            f"--rollout_memory holds {budget} tokens, but the longest prompt ({longest_prompt}) and --max_new_tokens "
            f"({longest_completion}) need {columns}; raise it or shorten them"
        )
    num_slots = max(budget // (columns + min(SLACK_COLUMNS, columns // 4)), 1)
    return num_slots, min(columns + SLACK_COLUMNS, budget // num_slots)


def _bytes(memory: str | None, device: torch.device) -> float:
    if memory is None:
        return torch.cuda.mem_get_info(device)[0] * _CUDA_SHARE if device.type == "cuda" else _CPU_BYTES
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", memory)
    if not match:
        raise UserError(f"--rollout_memory must be a number of tokens or a size such as 4GB or 512MiB; got {memory!r}")
    return float(match[1]) * _UNITS[match[2]]
