"""Whether a model drops activations while it trains."""

from torch import nn

from relax.causal_lm import base_model

NOISE = ("dropout", "layerdrop", "router_jitter_noise")
"""In the names of settings that make a forward pass noisy."""


def has_dropout(model: nn.Module) -> bool:
    """Whether a forward pass in training mode is noisy."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    # transformers hands that of attention to a function, out of the configuration.
    settings = base_model(model).config.get_text_config().to_dict()
    rates = [value for name, value in settings.items() if any(noise in name for noise in NOISE)]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
