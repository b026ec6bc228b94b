"""Tiny real things that the tests share: a character tokenizer, two-layer models, rows of very unequal length."""

import atexit
import os
import shutil
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["RELAX_CACHE"] = tempfile.mkdtemp(prefix="relax-tests-")  # not the cache of whoever runs the tests

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from relax.data.tokens.tokenized import Sample, TokenizedDataset
from relax.tasks.sorting import Sorting

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background starts with Ctrl-C ignored
atexit.register(shutil.rmtree, os.environ["RELAX_CACHE"], ignore_errors=True)
VOCABULARY = 14  # the sorting tokenizer's


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Each test starts with the handlers of a fresh process: a run that failed in the one before may leave others."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def build_llama(**changes: Any) -> LlamaForCausalLM:
    options = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    options |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(options | changes)))


@pytest.fixture
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return build_llama


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return Sorting().build_tokenizer()


def build_unequal_rows(count: int = 24, longest: int = 90, seed: int = 0) -> TokenizedDataset:
    """Random tokens; lengths from 2 to ``longest``, the number of targets unrelated to them."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        length = longest if i == 0 else int(rng.integers(2, 2 + 2 ** rng.integers(1, 7)))
        mask = rng.random(length) < rng.random()
        mask[-1] = True
        samples.append(Sample.of(rng.integers(4, VOCABULARY, length), mask))
    return TokenizedDataset.from_samples(samples)


@pytest.fixture
def unequal_rows() -> Callable[..., TokenizedDataset]:
    return build_unequal_rows
