"""The cycle of on-policy training: rollouts by the latest weights, the walk through the prompts, the own loader."""

from typing import Any

import lightning as L
import pytest
import torch
from freshness import Freshness
from grpo_run import STEPS, Steps, build, policy, train
from torch.utils.data import DataLoader

from relax.dropout import has_dropout
from relax.experience import Minibatch
from relax.lora import LoRASettings, add_lora
from relax.rewards import Rewards
from relax.tasks.sorting import Sorting
from trainers import grpo_trainer, iteration


@pytest.mark.parametrize(
    ("parts", "passes", "micro_batch_size", "lora"),
    [(1, 1, 16, False), (2, 1, 16, False), (2, 2, 4, False), (1, 2, 8, True)],
)
def test_rollouts_come_from_the_latest_weights(parts: int, passes: int, micro_batch_size: int, lora: bool) -> None:
    seen = Freshness()
    model: Any = add_lora(policy(), LoRASettings(r=2)) if lora else policy()
    cycle: dict[str, Any] = {"steps_per_generation": parts, "num_iterations": passes, "max_steps": 3 * parts * passes}
    train(model, callbacks=[seen], micro_batch_size=micro_batch_size, precision=32, **cycle)
    assert seen.checked == [0, parts * passes, 2 * parts * passes]
    assert len(seen.engine.calls) == 3
    assert len({weights for _, weights in seen.engine.calls}) == 3


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"min_new_tokens": 3}])
def test_ratios_are_one_on_fresh_experience_and_only_there(cut: dict[str, Any]) -> None:
    """Also where tokens were cut out of the distribution: ratios are those of the whole one."""
    steps, _ = train(max_steps=2 * STEPS, precision=32, **cut)
    for step, figures in enumerate(steps.figures):
        fresh = step % STEPS == 0
        assert (figures["ratio_min"] == figures["ratio_max"] == 1) == fresh
        assert (figures["old_kl"] == 0) == fresh


@pytest.mark.parametrize(("precision", "tolerance"), [(32, 1e-5), ("64-true", 1e-12)])
def test_log_probs_of_sampling_are_those_of_a_training_forward(
    precision: Any, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.on_policy.has_dropout", lambda model: True)  # they are computed once more, then
    steps, _ = train(max_steps=1, precision=precision, temperature=0.7, layout="packed")
    assert steps.figures[0]["ratio_min"] == pytest.approx(1, abs=tolerance)
    assert steps.figures[0]["ratio_max"] == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("preset", ["gspo", "rloo"])
def test_rounding_to_half_precision_clips_no_ratio_of_whole_completions(preset: str) -> None:
    """The weights stay, so that every ratio is 1; by log-probs of sampling half of gspo's would be out of bounds."""
    cycle: dict[str, Any] = {"num_iterations": 1, "batch_size": 64, "max_steps": 2, "max_new_tokens": 40}
    steps, _ = train(preset=preset, precision="bf16-mixed", learning_rate=1e-30, **cycle)
    assert steps.figures[1]["clip_low"] == steps.figures[1]["clip_high"] == 0
    assert steps.figures[1]["ratio_min"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["layerdrop", "router_jitter_noise", "attention_dropout"])
def test_noise_of_the_forward_pass_is_found_in_the_settings(name: str) -> None:
    model = policy()
    assert not has_dropout(model)
    setattr(model.config, name, 0.1)
    assert has_dropout(model)


def test_dropout_acts_in_training_and_not_in_sampling() -> None:
    """So that on fresh experience, too, log-probs are computed."""
    with pytest.warns(UserWarning, match="dropout, which acts in training and not in sampling"):
        steps, trainer = train(policy(attention_dropout=0.3), max_steps=1)
    assert trainer.noisy
    assert steps.figures[0]["ratio_max"] > 1.01
    quiet, _ = train(max_steps=1)
    assert torch.equal(steps.experiences[0].ids, quiet.experiences[0].ids)
    assert torch.equal(steps.experiences[0].tokens["logprobs"], quiet.experiences[0].tokens["logprobs"])


class Columns(L.Callback):
    """The log-probs that micro-batches bring, and those of the experience."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Minibatch, batch_idx: int) -> None:
        at = pl_module.experience.token_places([row - 1 for row in batch.rows])
        for name, column in batch.tokens.items():
            expected = pl_module.experience.tokens[name][at]
            assert column.dtype == expected.dtype == torch.float32
            assert torch.equal(column, expected)


def test_true_half_precision_does_not_round_what_ratios_are_made_of() -> None:
    train(precision="bf16-true", callbacks=[Columns()], preset="grpo", learning_rate=0.01)


class Order(L.Callback):
    """Hooks and the steps of an iteration, in the order in which they come."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.events.append("start")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.events.append("iteration")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.events.append("micro-batch")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.events.append("step")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.events.append("end")

    def named(self, name: str, function: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            self.events.append(name)
            return function(*arguments)

        return noted


def test_the_order_of_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order()
    trainer = build(callbacks=[order], preset="grpo", micro_batch_size=8, num_iterations=1, max_steps=4)
    for part in (iteration.generate, iteration.score, iteration.recall):
        monkeypatch.setattr(grpo_trainer, part.__name__, order.named(part.__name__, part))
    trainer.compute_loss = order.named("compute_loss", trainer.compute_loss)  # type: ignore[method-assign]
    trainer.train()
    micro_batch = ["micro-batch", "compute_loss"]
    step = [*micro_batch, *micro_batch, "step"]
    once = ["iteration", "generate", "score", "recall", *step, *step, "end"]
    assert order.events == ["start", *once, *once]


def test_prompts_are_asked_in_shuffled_passes_and_none_is_lost() -> None:
    """24 prompts, 8 an iteration: each once in three iterations, in another order in the next three."""
    rows, seen = Sorting().prompt_rows(24), Freshness()
    steps, trainer = train(train_dataset=rows, callbacks=[seen], num_iterations=1, max_steps=12, learning_rate=1e-30)
    assert seen.engine.numbers == list(range(48))
    asked = [prompt for experience in steps.experiences for prompt in experience.prompts]
    known = [trainer.tokenizer.encode(row["prompt"]) for row in rows]
    assert sorted(asked[:24]) == sorted(asked[24:]) == sorted(known)
    assert asked[:24] != asked[24:]
    first = next(e for e in steps.experiences[3:] if asked[0] in e.prompts)
    again = first.prompts.index(asked[0]) * 4
    assert [first.completion(again + i) for i in range(4)] != [steps.experiences[0].completion(i) for i in range(4)]


def test_by_default_every_prompt_is_asked_once() -> None:
    """The last iteration takes what it lacks from the next pass."""
    rows, seen = Sorting().prompt_rows(20), Freshness()
    assert build(train_dataset=rows).usual_epochs == 3
    train(train_dataset=rows, callbacks=[seen], max_steps=-1, max_epochs=3)
    assert seen.engine.numbers == list(range(24))


# A loader of the user's own


def own_run(
    rows: list[dict[str, str]], size: int, lightning: dict[str, Any] | None = None, collate: Any = list, **settings: Any
) -> Steps:
    """``fit`` with a loader of lists of ``size`` rows."""
    steps = Steps()
    module = build(train_dataset=None, steps_per_generation=1, num_iterations=1, callbacks=(), **settings)
    options: dict[str, Any] = {"max_epochs": 1, "precision": "64-true", "accelerator": "cpu", "logger": False}
    options |= {"enable_progress_bar": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    trainer = L.Trainer(callbacks=[steps], **options | (lightning or {}))
    trainer.fit(module, DataLoader(rows, batch_size=size, collate_fn=collate))
    return steps


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
@pytest.mark.parametrize("preset", ["dapo", "grpo"])
def test_a_batch_of_prompts_is_one_on_policy_update(preset: str) -> None:
    """The same completions, gradient and step as by iterations of one optimizer step over the same prompts."""
    cycle: dict[str, Any] = {"batch_size": 32, "num_iterations": 1, "steps_per_generation": 1}
    expected, trainer = train(preset=preset, max_steps=1, **cycle)
    assert trainer.prompts is not None
    rows = [dict(trainer.prompts[i].row) for i in trainer.prompts.walk(trainer.seed).indices(0, 8)]
    found = own_run(rows, 8, preset=preset, batch_size=16)  # which does not matter: the batch is what it is
    assert found.experiences[0].prompts == expected.experiences[0].prompts
    assert torch.equal(found.experiences[0].ids, expected.experiences[0].ids)
    torch.testing.assert_close(found.gradients[0], expected.gradients[0], rtol=1e-9, atol=1e-12)
    assert found.figures[0]["loss"] == pytest.approx(expected.figures[0]["loss"], rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
def test_the_reference_reads_a_batch_of_a_loader_at_one_time() -> None:
    reference, read = policy(), []
    looks = reference.model.register_forward_hook(lambda *_: read.append(1))
    own_run(Sorting().prompt_rows(8), 8, {"max_epochs": 0}, preset="grpo", reference=reference)
    before = len(read)
    own_run(Sorting().prompt_rows(8), 8, preset="grpo", reference=reference)
    looks.remove()
    assert len(read) - before == before + 1


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
def test_the_processes_of_rewards_end_with_a_run_by_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Rewards] = []
    monkeypatch.setattr(Rewards, "close", lambda rewards: closed.append(rewards))
    own_run(Sorting().prompt_rows(8), 8)
    assert len(closed) == 1


def test_the_columns_that_torch_makes_of_rows_are_rows_again() -> None:
    rows = Sorting().prompt_rows(8)
    lists, columns = own_run(rows, 4), own_run(rows, 4, collate=None)
    assert all(map(torch.equal, lists.gradients, columns.gradients))
    assert lists.experiences[-1].prompts == columns.experiences[-1].prompts


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
def test_lightning_may_accumulate_batches_of_prompts() -> None:
    rows = Sorting().prompt_rows(24)
    single = own_run(rows, 4, learning_rate=1e-30)
    assert len(single.gradients) == 6
    double = own_run(rows, 4, {"accumulate_grad_batches": 2}, learning_rate=1e-30)
    for step, found in enumerate(double.gradients):
        expected = (single.gradients[2 * step] + single.gradients[2 * step + 1]) / 2
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_a_loader_of_prompts_leaves_without_effect_is_told() -> None:
    message = "micro_batch_size, num_iterations, dynamic_sampling: no effect with a loader of prompts"
    module = build(micro_batch_size=4, steps_per_generation=1, dynamic_sampling=True)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    with pytest.warns(UserWarning, match=message):
        L.Trainer(max_steps=1, enable_checkpointing=False, **options).fit(
            module,
            DataLoader(Sorting().prompt_rows(8), batch_size=4, collate_fn=list),
        )
