"""Packed rows, heads and losses of real architectures, from tiny configs, against the models' own forward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as T

from relax import causal_lm
from relax.data.batching.batches import collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample
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
QWEN3_MOE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN3_MOE |= {"experts_implementation": "eager"}
LLAMA4 = {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 6}
LLAMA4 |= {"attn_temperature_tuning": False, "experts_implementation": "eager"}
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
    "qwen3_moe, one dense layer": lambda: T.Qwen3MoeConfig(**BASE, **QWEN3_MOE, mlp_only_layers=[0]),
    "llama 4": lambda: T.Llama4TextConfig(**BASE, **LLAMA4),
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


def test_the_probe_leaves_modes_and_random_numbers_alone() -> None:
    model = build("gpt2").train()
    model.transformer.h[1].eval()
    state = torch.get_rng_state()
    assert causal_lm.isolate_documents(model)
    assert model.training
    assert not model.transformer.h[1].training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("collate", [collate_packed, collate_padded])
def test_the_routers_logits_come_token_by_token_from_every_layer_with_experts(collate: Any) -> None:
    model = build("qwen3_moe, one dense layer")
    if collate is collate_packed:
        assert causal_lm.isolate_documents(model)
    batch = collate(samples())
    output = causal_lm.forward(model, batch, router_logits=True)
    assert output.router_logits is not None
    (logits,) = output.router_logits
    assert logits.shape == (batch.input_ids.numel(), 4)
    assert logits.requires_grad
    torch.testing.assert_close(output.hidden, causal_lm.hidden_states(model, batch))
    real = logits.unflatten(0, batch.input_ids.shape)[batch.input_ids != 0]
    causal_lm.restore_attention(model)
    order = sorted(samples(), key=lambda sample: -len(sample.input_ids)) if collate is collate_packed else samples()
    rows = [torch.tensor(sample.input_ids).long()[None] for sample in order]
    expected = [model(row, use_cache=False, output_router_logits=True).router_logits[0] for row in rows]
    torch.testing.assert_close(real, torch.cat(expected), rtol=1e-6, atol=1e-6)


def test_router_logits_of_a_model_without_experts_are_refused() -> None:
    with pytest.raises(UserError, match="LlamaForCausalLM hands out no router logits; use --router_aux_loss_coef=0"):
        causal_lm.forward(build("llama"), collate_padded(samples()), router_logits=True)
    assert causal_lm.forward(build("llama"), collate_padded(samples())).router_logits is None


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    config = T.BertGenerationConfig(**(BASE | {"num_key_value_heads": 4}), is_decoder=False)
    with pytest.raises(UserError, match="looks at the tokens it shall predict; it must be a causal language model"):
        causal_lm.check_head(T.AutoModelForCausalLM.from_config(config))


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}
PHI3 = T.Phi3Config(**BASE, rope_parameters=LONGROPE, original_max_position_embeddings=16)
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LLAMA = T.LlamaConfig(**(BASE | {"max_position_embeddings": 16}), rope_parameters=DYNAMIC)


@pytest.mark.parametrize(("config", "kind"), [(PHI3, "longrope"), (LLAMA, "dynamic")], ids=["longrope", "dynamic"])
def test_rows_that_change_the_frequencies_of_other_rows_are_warned_of(config: Any, kind: str) -> None:
    torch.manual_seed(0)
    model, batch = T.AutoModelForCausalLM.from_config(config).double(), collate_padded(samples())
    alone = causal_lm.hidden_states(model, collate_padded(samples()[1:2]))
    together = causal_lm.hidden_states(model, batch)[batch.owners == 1]
    assert (together - alone).norm() > 1e-5 * alone.norm()
    expected = rf"the longest row has 30 tokens; more than 16 .* \({kind}\) .*: use --max_length=16"
    with pytest.warns(UserWarning, match=expected):
        causal_lm.check_lengths(model, max(LENGTHS))


def test_no_warning_where_lengths_do_not_matter(recwarn: pytest.WarningsRecorder) -> None:
    causal_lm.check_lengths(build("gemma 3, mixed windows"), 10_000)
    causal_lm.check_lengths(build("gpt2"), 10_000)
    causal_lm.check_lengths(T.AutoModelForCausalLM.from_config(PHI3), 16)
    assert not recwarn.list


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


def test_damaged_weights_are_called_so() -> None:
    """They compare equal to nothing, which would be told as a model that looks ahead."""
    model = T.AutoModelForCausalLM.from_config(T.LlamaConfig(**BASE))
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(UserError, match=r"LlamaForCausalLM gives logits that are no numbers \(NaN\)"):
        causal_lm.check_head(model)
