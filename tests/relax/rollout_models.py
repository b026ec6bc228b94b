"""Tiny random models of many architectures whose attention matters: large weights, short windows."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 300
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}
_HALF_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 9}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "experts_implementation": "eager"}
_UNTIED = {"tie_word_embeddings": False}  # tied and random, a model repeats the last token for ever
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256} | _UNTIED
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MLA |= {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 part sliding": ("qwen2", _HALF_SLIDING | {"use_sliding_window": True}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3 part sliding": ("qwen3", _HALF_SLIDING | {"use_sliding_window": True, "head_dim": 12}),
    "gemma2": (
        "gemma2",
        _UNTIED | _HALF_SLIDING | {"head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5},
    ),
    "gemma3": ("gemma3_text", _UNTIED | _HALF_SLIDING | {"head_dim": 8, "query_pre_attn_scalar": 5}),
    "gpt2": ("gpt2", _GPT2),
    "gpt2 scaled by layer": ("gpt2", _GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", _UNTIED | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "phi3": ("phi3", {}),
    "phi3 sliding": ("phi3", {"sliding_window": 9}),
    "mistral sliding": ("mistral", {"sliding_window": 9}),
    "mixtral": ("mixtral", _EXPERTS | {"num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", _EXPERTS | {"num_experts": 4, "head_dim": 8}),
    "gpt_oss": ("gpt_oss", _EXPERTS | _HALF_SLIDING | {"num_local_experts": 4, "head_dim": 8}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {"logits_scaling": 2.0, "attention_multiplier": 0.3}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "deepseek_v3": ("deepseek_v3", _EXPERTS | _MLA),
}
"""Decoded in slots."""

SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", _UNTIED | {"n_layer": 3, "n_head": 4}),
    "mamba": ("mamba", {"state_size": 4}),
    "llama4": (
        "llama4_text",
        {"attention_chunk_size": 8, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
    ),
    "qwen3_next": (
        "qwen3_next",
        _EXPERTS
        | {
            "num_hidden_layers": 4,
            "num_experts": 4,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 24,
        },
    ),
}
"""Decoded one prompt at a time."""


def build(architecture: str, **changes: Any) -> PreTrainedModel:
    kind, settings = (SERVED | SLOW)[architecture]
    options = _SIZES | {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **(options | settings | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():  # biases, sinks and the like begin as zeros
        if name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(weight, std=0.3)
    return model


def random_prompts(lengths: tuple[int, ...] = (7, 31, 12, 31, 20, 9), seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
