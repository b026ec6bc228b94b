"""What a model's configuration says of its router, and which models have a balance loss that ReLax can add."""

from typing import Any

import pytest
import transformers as T
from tiny_models import refused, tiny_model

from relax.experts import check_balance_loss, experts_per_token, router_coefficient

SIZES: dict[str, Any] = {
    **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2, "pad_token_id": 0},
    **{"bos_token_id": None, "eos_token_id": 1},
}
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
BALANCED = {
    "mixtral": lambda: T.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3 moe, one layer dense": lambda: T.Qwen3MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=8, mlp_only_layers=[0], head_dim=4
    ),
    "qwen2 moe": lambda: T.Qwen2MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8
    ),
    "olmoe": lambda: T.OlmoeConfig(**SIZES, num_experts=4),
    "phi moe": lambda: T.PhimoeConfig(**SIZES, num_local_experts=4),
    "granite moe": lambda: T.GraniteMoeConfig(**SIZES, num_local_experts=4),
}


def mixtral(**changes: Any) -> Any:
    return T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=4, **changes))


@pytest.mark.parametrize("name", BALANCED)
def test_these_models_are_balanced_by_the_loss_we_compute(name: str) -> None:
    model = T.AutoModelForCausalLM.from_config(BALANCED[name]())
    check_balance_loss(model)
    assert experts_per_token(model) == 2


def test_the_configuration_decides_where_no_flag_is_given() -> None:
    wants_it = mixtral(output_router_logits=True, router_aux_loss_coef=0.02)
    assert router_coefficient(wants_it, None) == 0.02
    assert router_coefficient(wants_it, 0.5) == 0.5
    assert router_coefficient(wants_it, 0.0) == 0.0
    assert router_coefficient(mixtral(router_aux_loss_coef=0.02), None) == 0.0
    assert router_coefficient(tiny_model(), None) == 0.0


def test_a_model_without_routers_is_refused() -> None:
    with refused("--router_aux_loss_coef: LlamaForCausalLM has no routers; give 0 or drop the flag"):
        router_coefficient(tiny_model(), 0.1)
    assert router_coefficient(tiny_model(), 0.0) == 0.0


def test_a_model_that_is_balanced_in_another_way_is_refused() -> None:
    """DeepSeek-V3 moves a bias of each expert; transformers computes no loss for it."""
    config = T.DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 4},
        **MLA,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=8,
    )
    with refused("--router_aux_loss_coef: DeepseekV3ForCausalLM has no loss that balances its routers"):
        check_balance_loss(T.DeepseekV3ForCausalLM(config))


def test_a_balance_loss_of_another_kind_is_refused() -> None:
    model = mixtral()
    model.num_experts_per_tok = 1  # its own loss now counts the first choice alone
    with refused("balances its routers by a loss that ReLax does not know"):
        check_balance_loss(model)
