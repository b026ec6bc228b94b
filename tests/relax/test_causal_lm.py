"""Packed rows, heads and losses of real architectures, from tiny configs, against the models' own forward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as T

from relax import causal_lm
from relax.data.batches import collate_packed, collate_padded
from relax.data.tokenized import Sample
from relax.errors import UserError
from relax.losses import weighted_logprob_sum

V = 101
BASE: dict[str, Any] = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1}
GEMMA = {**BASE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
CONFIGS = {
    "llama": lambda: T.LlamaConfig(**BASE),
    "qwen2": lambda: T.Qwen2Config(**BASE),
    "qwen3": lambda: T.Qwen3Config(**BASE, head_dim=8),
    "mistral, sliding window": lambda: T.MistralConfig(**BASE, sliding_window=6),
    "gemma 2, soft-capped, window": lambda: T.Gemma2Config(**GEMMA, final_logit_softcapping=0.5),
    "gemma 3, mixed windows": lambda: T.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "gpt2": lambda: T.GPT2Config(**GPT2, eos_token_id=2),
    "phi, head with a bias": lambda: T.PhiConfig(**BASE),
    "phi 3": lambda: T.Phi3Config(**BASE),
    "olmo 2": lambda: T.Olmo2Config(**BASE),
    "cohere, scaled logits": lambda: T.CohereConfig(**BASE, logit_scale=0.3),
    "granite, divided logits": lambda: T.GraniteConfig(**BASE, logits_scaling=3.0),
    "mixtral": lambda: T.MixtralConfig(
        **BASE, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager"
    ),
}
LENGTHS = (17, 9, 9, 3, 30, 8)


def build(name: str) -> Any:
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(CONFIGS[name]()).double().eval()


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, V, (n,), generator=generator).tolist() for n in LENGTHS]
    return [Sample.of(row, [t % 3 != 0 for t in range(len(row))]) for row in ids]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("collate", [collate_packed, collate_padded])
def test_loss_and_gradient_equal_those_of_the_models_own_forward_row_by_row(name: str, collate: Any) -> None:
    model = build(name)
    causal_lm.check_head(model)
    if collate is collate_packed:
        assert causal_lm.isolate_documents(model)
    batch = collate(samples())
    hidden = causal_lm.hidden_states(model, batch)
    loss, _ = weighted_logprob_sum(hidden, causal_lm.language_head(model), batch.targets, batch.weights.double())
    (-loss).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    causal_lm.restore_attention(model)

    model.zero_grad()
    expected = torch.zeros((), dtype=torch.float64)
    for sample in samples():
        ids = torch.tensor(sample.input_ids).long()
        nll = F.cross_entropy(model(ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="none")
        expected = expected + nll[torch.tensor(sample.loss_mask)[1:]].sum()
    expected.backward()
    # Some models compute a norm, a router or soft-capped scores in fp32 whatever their weights are.
    torch.testing.assert_close(-loss, expected, rtol=1e-6, atol=1e-6)
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[parameter_name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_llama_packed_is_exact_to_fp64_rounding() -> None:
    model = build("llama")
    assert causal_lm.isolate_documents(model)
    packed = collate_packed(samples())
    together = causal_lm.hidden_states(model, packed)
    causal_lm.restore_attention(model)
    padded = causal_lm.hidden_states(model, collate_padded(samples()))
    order = torch.argsort(torch.tensor([-n for n in LENGTHS]), stable=True).tolist()
    rows = collate_padded(samples()).owners
    expected = torch.cat([padded[rows == i] for i in order])
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "config",
    [
        T.FalconConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
        T.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4),
        T.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2),
    ],
    ids=["falcon", "bloom, ALiBi", "mamba, recurrent"],
)
def test_a_model_that_cannot_keep_documents_apart_is_found_out(config: Any) -> None:
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    assert not causal_lm.isolate_documents(model)
    assert model.config._attn_implementation == before


def test_the_probe_leaves_modes_and_random_numbers_alone() -> None:
    model = build("gpt2").train()
    model.transformer.h[1].eval()
    state = torch.get_rng_state()
    assert causal_lm.isolate_documents(model)
    assert model.training
    assert not model.transformer.h[1].training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_that_does_more_than_we_know_is_refused() -> None:
    model = build("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits)
    causal_lm.check_head(model)
    forward = model.forward

    def shifted(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits = output.logits * 1.5
        return output

    model.forward = shifted
    with pytest.raises(UserError, match="LlamaForCausalLM changes its logits in a way ReLax does not know"):
        causal_lm.check_head(model)


def test_attention_outside_a_packed_row_stays_that_of_sdpa() -> None:
    """Generation with left padding, in the middle of a run that packs."""
    model = build("mistral, sliding window")
    ids = torch.randint(3, V, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **options)
    assert causal_lm.isolate_documents(model)
    assert torch.equal(model.generate(ids, **options), before)
