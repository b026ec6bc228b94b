"""The balance loss of a router: the equation, transformers' own for one sequence, and no dependence on the layout."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import transformers as T
from torch import Tensor

from relax import causal_lm
from relax.data.batching.batches import collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample, TokenizedDataset
from relax.losses import balance_losses
from relax.sequences import sequence_members
from trainers import SFTTrainer

E, K, LAYERS = 6, 2, 3
BASE: dict[str, Any] = {
    **{"vocab_size": 14, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts_per_tok": 2},
    **{"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "experts_implementation": "eager"},
}
CONFIGS = {
    "mixtral": lambda: T.MixtralConfig(**BASE, num_local_experts=4),
    "qwen3 moe": lambda: T.Qwen3MoeConfig(**BASE, num_experts=4, moe_intermediate_size=8, head_dim=4),
    "olmoe": lambda: T.OlmoeConfig(**BASE, num_experts=4),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(CONFIGS[name]()).double()
    for parameter_name, weight in model.named_parameters():
        if parameter_name.endswith("gate.weight"):
            weight.data.mul_(40)  # an unbalanced router, or there is nothing to see
    return model


def random_logits(tokens: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    skew = torch.linspace(0, 2, E, dtype=torch.float64)
    return tuple(
        (torch.randn(tokens, E, dtype=torch.float64, generator=generator) + skew).requires_grad_()
        for _ in range(LAYERS)
    )


def literal(layers: list[Tensor], experts_per_token: int) -> Tensor:
    """E sum_e f_e P_e of one sequence, loop by loop: of every (layer, token) pair one vote."""
    pairs = [row for layer in layers for row in layer]
    num_experts = len(pairs[0])
    chosen, probability = [0.0] * num_experts, [torch.zeros((), dtype=torch.float64)] * num_experts
    for row in pairs:
        p = row.exp() / row.exp().sum()
        for e in sorted(range(num_experts), key=lambda e: -p[e].item())[:experts_per_token]:
            chosen[e] += 1 / len(pairs)
        probability = [total + p[e] / len(pairs) for e, total in enumerate(probability)]
    return num_experts * torch.stack([f * p for f, p in zip(chosen, probability, strict=True)]).sum()


def test_each_sequence_has_the_loss_and_gradient_of_the_equation() -> None:
    logits = random_logits(9)
    members = torch.zeros(2, 9, dtype=torch.bool)
    members[0, :4] = True
    members[1, 4:8] = True  # the last token is padding
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    losses = balance_losses(logits, members, K)
    expected = torch.stack([literal([layer[rows] for layer in logits], K) for rows in (slice(0, 4), slice(4, 8))])
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad((weights * losses).sum(), logits)
    wanted = torch.autograd.grad((weights * expected).sum(), logits)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)
    assert not any(layer[8].any() for layer in found)


def test_of_one_sequence_it_is_transformers_loss() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = random_logits(11)
    ours = balance_losses(logits, torch.ones(1, 11, dtype=torch.bool), K)[0]
    theirs = load_balancing_loss_func(logits, E, K)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=0)  # they sum in fp32
    found, expected = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_perfect_balance_is_the_number_of_experts_a_token_and_collapse_the_number_of_experts() -> None:
    members = torch.ones(1, E, dtype=torch.bool)
    even = 100 * torch.eye(E, dtype=torch.float64)
    collapsed = 100 * F.one_hot(torch.zeros(E, dtype=torch.long), E).double()
    assert balance_losses([even], members, 1).item() == pytest.approx(1)
    assert balance_losses([collapsed], members, 1).item() == pytest.approx(E)


def test_half_precision_is_summed_in_fp32() -> None:
    logits = random_logits(700)
    members = torch.ones(1, 700, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        half = balance_losses([layer.bfloat16() for layer in logits], members, K)
    expected = balance_losses([layer.bfloat16().double() for layer in logits], members, K)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("collate", [collate_packed, collate_padded])
def test_packed_and_padded_sequences_have_the_loss_that_the_model_gives_each_alone(name: str, collate: Any) -> None:
    model = build(name)
    samples = [Sample.of([t % 10 + 4 for t in range(n)], [True] * n) for n in (5, 9, 5, 2)]
    if collate is collate_packed:
        assert causal_lm.isolate_documents(model)
        samples = sorted(samples, key=lambda s: -len(s.input_ids))
    batch = collate(samples)
    logits = causal_lm.forward(model, batch, router_logits=True).router_logits
    assert logits is not None
    found = balance_losses(logits, sequence_members(batch), 2)
    alone = [model(input_ids=torch.tensor(s.input_ids)[None].long(), output_router_logits=True) for s in samples]
    expected = torch.stack([output.aux_loss for output in alone]).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


class GradientLog(L.Callback):
    """The gradient of every optimizer step, flat."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in module.model.parameters()]).clone())


def fit(model: Any, tokenizer: Any, rows: TokenizedDataset, **settings: Any) -> tuple[GradientLog, SFTTrainer]:
    log = GradientLog()
    trainer = SFTTrainer(
        *(model, tokenizer),
        train_dataset=rows,
        batch_size=6,
        router_aux_loss_coef=0.5,
        callbacks=[log],
        precision="64-true",
        accelerator="cpu",
        enable_progress_bar=False,
        **settings,
    )
    return log, trainer.train()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_of_a_step_is_that_of_one_row_at_a_time_however_the_step_is_cut(
    name: str, tokenizer: Any, unequal_rows: Callable
) -> None:
    rows = unequal_rows(6, longest=20)
    model = build(name)
    for i in range(6):
        ids, mask = torch.tensor(rows[i].input_ids).long(), torch.tensor(rows[i].loss_mask)
        output = model(input_ids=ids[None], output_router_logits=True)
        nll = F.cross_entropy(output.logits[0, :-1], ids[1:], reduction="none")[mask[1:]].sum()
        (nll / rows.num_targets.sum() + 0.5 * literal(list(output.router_logits), 2) / 6).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])

    layouts = [("packed", 6), ("packed", 2), ("padded", 6), ("padded", 3), ("padded", 1)]
    for layout, size in layouts:
        log, trainer = fit(build(name), tokenizer, rows, layout=layout, micro_batch_size=size)
        torch.testing.assert_close(log.gradients[0], expected, rtol=1e-9, atol=1e-12)
        figures = trainer.trainer.callback_metrics
        whole = figures["train/nll"] + 0.5 * figures["train/router_loss"]
        assert figures["train/loss"].item() == pytest.approx(whole.item(), rel=1e-6)


def test_micro_batches_that_only_fill_up_a_step_add_nothing(tokenizer: Any, unequal_rows: Callable) -> None:
    """7 rows in steps of 6: the second step has one row for its three micro-batches."""
    logs = [
        fit(build("mixtral"), tokenizer, unequal_rows(7, longest=20), micro_batch_size=size)[0].gradients
        for size in (6, 2)
    ]
    assert len(logs[0]) == 2
    torch.testing.assert_close(logs[1], logs[0], rtol=1e-9, atol=1e-12)


def test_gradient_checkpointing_gives_the_same_gradient(tokenizer: Any, unequal_rows: Callable) -> None:
    rows = unequal_rows(6, longest=20)
    plain, checkpointed = (
        fit(build("mixtral"), tokenizer, rows, gradient_checkpointing=again)[0].gradients for again in (False, True)
    )
    torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-15)
