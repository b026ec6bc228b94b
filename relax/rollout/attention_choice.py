"""Which attention a model uses while it generates: slots in a decoding step, its own for prompts and afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def kept_attention(model: PreTrainedModel) -> Iterator[None]:
    """Whatever attention the model uses meanwhile, it has its own again in the end."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        use_attention(model, before)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Masks need no registering: a ready one passes through transformers as it is."""
    if model.config._attn_implementation != name:  # a walk through all modules
        model.set_attn_implementation(name)
