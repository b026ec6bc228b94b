"""The base trainer's life cycle: train(), modes, schedules, optimizers, settings that are refused."""

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from test_batch_layout import fit
from torch import nn

from relax.errors import UserError
from relax.lora import LoRASettings, add_lora
from relax.optimizers import build_optimizer, build_schedule, parameter_groups
from trainers import SFTTrainer, Trainer


@pytest.fixture
def make_trainer(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> Callable[..., SFTTrainer]:
    def make(model: Any = None, **settings: Any) -> SFTTrainer:
        options = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 8} | settings
        return SFTTrainer(model or make_llama(), tokenizer, train_dataset=unequal_rows(), **options)

    return make


class Modes(L.Callback):
    def __init__(self) -> None:
        self.training: list[bool] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.training.append(all(part.training for part in module.modules()))


def test_the_trainer_is_abstract(make_llama: Callable, tokenizer: Any, unequal_rows: Callable) -> None:
    with pytest.raises(TypeError, match="abstract.*compute_loss"):
        Trainer(make_llama(), tokenizer, train_dataset=unequal_rows())  # type: ignore[abstract]


def test_train_with_a_mode_is_nn_module_train(make_trainer: Callable) -> None:
    trainer = make_trainer()
    assert trainer.train(False) is trainer
    assert not trainer.model.training
    assert trainer.train(True).model.training
    trainer.eval()
    assert not trainer.model.training
    trainer.unfreeze()
    assert trainer.model.training
    assert trainer._trainer is None, "none of these starts a run"


def test_every_micro_batch_is_computed_in_training_mode_also_after_validation(
    make_trainer: Callable, unequal_rows: Callable
) -> None:
    """transformers loads models in eval mode and Lightning leaves them there: dropout would be off unnoticed."""
    modes = Modes()
    trainer = make_trainer(
        val_dataset=unequal_rows(4), val_every_n_steps=1, callbacks=[modes], max_epochs=2, micro_batch_size=4
    )
    trainer.model.eval()
    trainer.train()
    assert len(modes.training) == 12
    assert all(modes.training)


def test_inside_a_run_a_bare_train_switches_modes(make_trainer: Callable) -> None:
    class Sampler(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            module.eval()
            assert not module.model.training
            module.train()
            assert module.model.training

    trainer = make_trainer(callbacks=[Sampler()])
    assert trainer.train().trainer.global_step == 3


def test_train_can_be_called_again_for_another_run(make_trainer: Callable) -> None:
    trainer = make_trainer()
    trainer.train()
    first = trainer.model.lm_head.weight.clone()
    trainer.train()
    assert trainer.trainer.global_step == 3
    assert not torch.equal(trainer.model.lm_head.weight, first)


def test_noise_and_order_are_functions_of_the_seed(make_trainer: Callable, make_llama: Callable) -> None:
    def loss(seed: int, dropout: float) -> float:
        torch.rand(7)  # what ran before does not matter
        trainer = make_trainer(make_llama(attention_dropout=dropout), seed=seed, max_epochs=2)
        return float(trainer.train().trainer.callback_metrics["train/loss"])

    assert loss(0, 0.3) == loss(0, 0.3)
    assert len({loss(0, 0.3), loss(1, 0.3), loss(0, 0.0), loss(1, 0.0)}) == 4


def test_weight_decay_spares_biases_and_norms(make_llama: Callable) -> None:
    model = make_llama(attention_bias=True)
    decaying, steady = parameter_groups(model, 0.1)
    assert decaying["weight_decay"] == 0.1
    assert steady["weight_decay"] == 0
    spared = {name for name, p in model.named_parameters() if any(p is q for q in steady["params"])}
    assert spared == {name for name, _ in model.named_parameters() if "norm" in name or name.endswith("bias")}
    assert len(decaying["params"]) + len(steady["params"]) == len(list(model.parameters()))


def rates(name: str, total: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    defaults = {"warmup_steps": 0, "min_ratio": 0.0, "decay_ratio": 0.5}
    scheduler = build_schedule(optimizer, name, total_steps=total, **(defaults | options))
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_have_the_published_shapes() -> None:
    assert rates("constant", 3) == [1, 1, 1]
    assert rates("linear", 4) == [1, 0.75, 0.5, 0.25]
    assert rates("cosine", 4) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates("cosine", 4, min_ratio=0.1) == pytest.approx([1, 0.868198, 0.55, 0.231802], abs=1e-6)
    assert rates("wsd", 8) == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates("linear", 6, warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("accumulation", [{"micro_batch_size": 8}, {"micro_batch_size": 2}])
def test_schedules_count_optimizer_steps_whatever_the_accumulation(accumulation: dict, make_trainer: Callable) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.found.append(optimizer.param_groups[0]["lr"])

    seen = Rates()
    make_trainer(
        callbacks=[seen], learning_rate=1.0, schedule="linear", warmup_ratio=1 / 3, max_epochs=2, **accumulation
    ).train()
    assert seen.found == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor"])
def test_every_named_optimizer_trains(name: str, make_trainer: Callable) -> None:
    trainer = make_trainer(optimizer=name, learning_rate=1e-2)
    before = trainer.model.lm_head.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.model.lm_head.weight, before)


def test_adamw_is_fused_and_a_users_callable_gets_the_groups(make_llama: Callable) -> None:
    groups = parameter_groups(make_llama(), 0.1)
    options = {"learning_rate": 0.5, "betas": (0.9, 0.95), "fused": True}
    assert build_optimizer("adamw", groups, **options).defaults["fused"]
    own = build_optimizer(lambda g: torch.optim.RMSprop(g, alpha=0.5), parameter_groups(make_llama(), 0.1), **options)
    assert isinstance(own, torch.optim.RMSprop)
    assert [(g["lr"], g["weight_decay"]) for g in own.param_groups] == [(0.5, 0.1), (0.5, 0.0)]
    with pytest.raises(UserError, match="optimizer must return a torch.optim.Optimizer, got list"):
        build_optimizer(lambda g: g, parameter_groups(make_llama(), 0.1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    adapter: bool, make_llama: Callable, tokenizer: Any, unequal_rows: Callable
) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = add_lora(make_llama(), LoRASettings(4, dropout=0.2)) if adapter else make_llama(attention_dropout=0.2)
        log, _ = fit(model, tokenizer, unequal_rows(), batch_size=8, gradient_checkpointing=checkpointing)
        return log.gradients

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == len(checkpointed) > 0
    for found, expected in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


REFUSED = [
    ({"learning_rate": 0}, "--learning_rate must be above 0, got 0"),
    ({"learning_rate": float("nan")}, "--learning_rate must be above 0, got nan"),
    ({"weight_decay": -1}, "--weight_decay must lie between 0 and inf, got -1"),
    ({"betas": (0.9, 1.0)}, "--betas must lie between 0 and 1, got 1.0"),
    ({"schedule": "cosin"}, "--schedule must be one of constant, cosine, linear, wsd, got cosin; did you mean cosine"),
    ({"optimizer": "adam2"}, "--optimizer must be one of .*, got adam2; did you mean adamw?"),
    ({"layout": "dense"}, "--layout must be one of auto, packed, padded, got dense"),
    ({"warmup_steps": 2, "warmup_ratio": 0.1}, "only one of --warmup_steps=2 and --warmup_ratio=0.1 can be given"),
    ({"warmup_ratio": 5}, "--warmup_ratio must lie between 0 and 1, got 5"),
    ({"resume": "auto", "overwrite": True}, "only one of --resume=auto and --overwrite=True can be given"),
    ({"batch_size": 9, "micro_batch_size": 2}, "devices x accumulate_grad_batches x micro_batch_size, got 9"),
    ({"batch_size": 9, "devices": 2}, "divisible by the number of devices, got 9 over 2; try --batch_size=10"),
    ({"batch_size": 8, "accumulate_grad_batches": 3}, "got 8 against 1 x 3 x 2"),
    (
        {"packing_length": 200, "max_tokens_per_micro_batch": 100},
        "--max_tokens_per_micro_batch=100 must hold a packed sequence, got --packing_length=200",
    ),
    ({"leaning_rate": 1e-3}, "unknown argument leaning_rate; did you mean learning_rate"),
    ({"accelerator": "gpu", "devices": 64}, "Lightning refuses a setting: .*"),
    ({"precision": "17"}, "Lightning refuses a setting: .*17"),
    ({"strategy": "dpp"}, "Lightning refuses a setting: .*dpp"),
    ({"max_steps": -5}, "Lightning refuses a setting: .*-5"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(s) for s, _ in REFUSED])
def test_settings_that_cannot_work_are_refused_with_the_flag_to_change(
    settings: dict, message: str, make_trainer: Callable
) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(**settings)


def test_settings_without_effect_are_told(make_trainer: Callable, tmp_path: Any) -> None:
    with pytest.warns(UserWarning, match="--val_every_n_steps has no effect without validation data"):
        make_trainer(val_every_n_steps=2)
    with pytest.warns(UserWarning, match="--min_lr_ratio has no effect with --schedule=constant"):
        make_trainer(min_lr_ratio=0.1, schedule="constant")
    with pytest.warns(UserWarning, match="no checkpoint will be written"):
        make_trainer(output_dir=tmp_path)
    for settings, message in (
        (
            {"optimizer": "adafactor", "betas": (0.9, 0.95)},
            r"--betas=\(0.9, 0.95\) has no effect with --optimizer=",
        ),
        ({"overwrite": True}, "--overwrite has no effect without --output_dir"),
        ({"max_length": 12}, "--max_length=12 has no effect on tokenized data"),
        ({"shuffle_buffer": 5}, "--shuffle_buffer=5 has no effect on data that are not streamed"),
        ({"max_length": None, "truncation": "drop"}, "--truncation=drop has no effect without --max_length"),
    ):
        with pytest.warns(UserWarning, match=message):
            make_trainer(**settings)


def test_a_frozen_model_is_refused(make_trainer: Callable, make_llama: Callable) -> None:
    model = make_llama().requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        make_trainer(model).train()


def test_packed_on_a_model_that_cannot_is_refused_and_auto_pads(tokenizer: Any, unequal_rows: Callable) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    def trainer(layout: str) -> SFTTrainer:
        model = BloomForCausalLM(BloomConfig(vocab_size=14, hidden_size=16, n_layer=1, n_head=2))
        options = {"accelerator": "cpu", "enable_progress_bar": False, "max_steps": 1}
        return SFTTrainer(model, tokenizer, train_dataset=unequal_rows(), layout=layout, **options)

    with pytest.raises(UserError, match="--layout=packed needs a model that keeps packed documents apart, BloomFor"):
        trainer("packed").train()
    assert trainer("auto").train().trainer.global_step == 1


def test_hyper_parameters_are_plain_values(make_trainer: Callable) -> None:
    hparams = dict(make_trainer(max_epochs=2, optimizer=lambda g: torch.optim.SGD(g), config={"mine": 1}).hparams)
    assert {type(v) for v in hparams.values()} <= {int, float, str, bool, list, type(None)}
    assert hparams["max_epochs"] == 2
    assert hparams["mine"] == 1
    assert "tokenizer" not in hparams


UNFIT = [
    ({"limit_val_batches": 2}, "--limit_val_batches=2 cuts the validation apart"),
    ({"fast_dev_run": True}, "--fast_dev_run=True cuts an optimizer step apart; use --max_steps=1"),
    ({"overfit_batches": 0.1}, "--overfit_batches=0.1 repeats parts"),
    ({"limit_train_batches": 3, "micro_batch_size": 4}, "--limit_train_batches must end with an optimizer step, got 3"),
    ({"val_check_interval": 3}, "--val_check_interval=3 counts micro-batches; use --val_every_n_steps"),
    ({"limit_train_batches": 0.5}, "--limit_train_batches must end with an optimizer step, got 0.5"),
    ({"max_time": {"minutes": 1}}, "--schedule=cosine and --warmup_ratio need an end that is known"),
    ({"max_epochs": -1}, "--schedule=cosine and --warmup_ratio need an end that is known"),
]


@pytest.mark.parametrize(("settings", "message"), UNFIT, ids=[str(s) for s, _ in UNFIT])
def test_what_would_give_wrong_figures_is_refused(settings: dict, message: str, make_trainer: Callable) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(**settings)


def test_max_time_alone_ends_a_run_with_a_constant_rate(make_trainer: Callable) -> None:
    trainer = make_trainer(max_time={"seconds": 1}, schedule="constant").train()
    assert trainer.trainer.global_step > 3


def test_limit_train_batches_at_whole_steps_trains_so_many(make_trainer: Callable) -> None:
    assert make_trainer(limit_train_batches=4, micro_batch_size=4).train().trainer.global_step == 2


def test_processes_that_disagree_with_the_devices_are_refused(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun without --devices would start two whole jobs in one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes were started \(WORLD_SIZE\) for 1 devices; give --devices"):
        make_trainer()


def test_validation_that_never_comes_is_told(make_trainer: Callable, unequal_rows: Callable) -> None:
    with pytest.warns(UserWarning, match="never used: the run ends at step 2, before the first validation at step 3"):
        make_trainer(val_dataset=unequal_rows(4), max_steps=2).train()


def test_trained_weights_in_half_precision_are_told(make_trainer: Callable) -> None:
    with pytest.warns(UserWarning, match="small updates are lost to rounding"):
        make_trainer(precision="bf16-true", max_steps=1).train()


def test_a_mistake_that_lightning_finds_in_the_run_is_a_user_error(make_trainer: Callable) -> None:
    with pytest.raises(UserError, match="Lightning refuses a setting: .*LearningRateMonitor.*logger"):
        make_trainer(callbacks=[L.pytorch.callbacks.LearningRateMonitor()]).train()


def test_bf16_mixed_trains_fp32_weights(make_trainer: Callable) -> None:
    trainer = make_trainer(precision="bf16-mixed", learning_rate=1e-2, max_epochs=4, micro_batch_size=4)
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if "train/loss" in trainer.callback_metrics:
                losses.append(float(trainer.callback_metrics["train/loss"]))

    trainer.own_callbacks.append(Losses())
    trainer.train()
    assert trainer.model.lm_head.weight.dtype == torch.float32
    assert losses[-1] < losses[0]


def test_a_lightning_trainer_of_the_users_own_and_settings_that_it_does_not_see(make_trainer: Callable) -> None:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = make_trainer(max_epochs=3, callbacks=[Modes()])
    with pytest.warns(UserWarning, match="max_epochs, callbacks: no effect with a lightning.Trainer of your own"):
        L.Trainer(max_epochs=1, **options).fit(module)


OWN: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    "max_epochs": 1,
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast_dev_run": True}, "fast_dev_run=True of the lightning.Trainer cuts an optimizer step apart"),
        ({"limit_val_batches": 1}, "limit_val_batches=1 of the lightning.Trainer cuts the validation apart"),
        ({"limit_train_batches": 3}, "limit_train_batches=3 of the lightning.Trainer must end with an optimizer step"),
        ({"limit_train_batches": 0.5}, "limit_train_batches=0.5 of the lightning.Trainer must end with an optimizer"),
        ({"val_check_interval": 1}, "val_check_interval=1 of the lightning.Trainer must end with an optimizer step"),
        ({"max_epochs": -1, "max_time": {"seconds": 5}}, "--schedule=cosine .* need to know the end"),
    ],
)
def test_what_a_lightning_trainer_of_the_users_own_would_cut_apart_is_refused(
    options: dict, message: str, make_trainer: Callable, unequal_rows: Callable
) -> None:
    module = make_trainer(micro_batch_size=4, val_dataset=unequal_rows(4))
    with pytest.raises(UserError, match=message):
        L.Trainer(**OWN | {"accumulate_grad_batches": 2} | options).fit(module)


def test_a_lightning_trainer_of_the_users_own_validates_between_steps(
    make_trainer: Callable, unequal_rows: Callable
) -> None:
    module = make_trainer(micro_batch_size=4, val_dataset=unequal_rows(4))
    trainer = L.Trainer(**OWN, accumulate_grad_batches=2, val_check_interval=2, limit_train_batches=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the validation data are never used")
        trainer.fit(module)
    assert trainer.global_step == 2
    assert trainer.callback_metrics["val/loss"].isfinite()


def test_a_budget_overrules_another_accumulation_and_says_so(make_trainer: Callable) -> None:
    with pytest.warns(UserWarning, match="accumulate_grad_batches=7 of the lightning.Trainer: no effect, .*=100 makes"):
        L.Trainer(**OWN, accumulate_grad_batches=7).fit(make_trainer(max_tokens_per_micro_batch=100))


@pytest.mark.parametrize("cut", [{"micro_batch_size": 4}, {"max_tokens_per_micro_batch": 100}, {"packing_length": 90}])
def test_validate_alone_needs_no_end_and_no_accumulation(
    cut: dict, make_trainer: Callable, unequal_rows: Callable
) -> None:
    options = {name: value for name, value in OWN.items() if name != "max_epochs"}
    found = [
        L.Trainer(**options).validate(make_trainer(val_dataset=unequal_rows(9), **each), verbose=False)[0]["val/loss"]
        for each in (cut, {})
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_validate_alone_gives_the_figures(make_trainer: Callable, unequal_rows: Callable) -> None:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = make_trainer(val_dataset=unequal_rows(5))
    for precision in ("32-true", "bf16-mixed"):
        [figures] = L.Trainer(precision=precision, **options).validate(module, verbose=False)
        assert 2 < figures["val/loss"] < 4
    assert all(p.grad is None for p in module.parameters())


def test_a_strategy_instance_is_taken(make_trainer: Callable) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    trainer = make_trainer(strategy=SingleDeviceStrategy("cpu"), accelerator="auto")
    assert trainer.train().trainer.global_step == 3
