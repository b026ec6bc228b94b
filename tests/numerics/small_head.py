"""A small head of a language model in fp64, over rows that make several chunks."""

import pytest
import torch
from torch import nn

from relax.causal_lm import LanguageHead

N, D, V = 50, 12, 40


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk is smaller than the others."""
    monkeypatch.setattr("relax.losses.logprobs.CHUNK_ROWS", 16)


def make_head(*, bias: bool = False, scale: float = 1.0, softcap: float | None = None) -> LanguageHead:
    torch.manual_seed(0)
    return LanguageHead(nn.Linear(D, V, bias=bias).double(), scale, softcap)
