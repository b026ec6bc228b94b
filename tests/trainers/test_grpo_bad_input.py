"""What a user can get wrong, and policies and rewards that misbehave: one line says what, or the run goes on."""

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch
from conftest import build_llama
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from callbacks import NaNGuard
from relax.errors import NonFiniteLoss, TrainingStopped, UserError
from relax.lora import LoRASettings, add_lora
from relax.rewards import build_rewards
from relax.tasks.sorting import Sorting
from trainers import GRPOTrainer
from trainers.on_policy import OnPolicyTrainer

EOS = 1
ROWS = [{"prompt": f"{number}>"} for number in range(1000, 1012)]
SETTINGS: dict[str, Any] = {
    **{"batch_size": 16, "num_generations": 4, "max_new_tokens": 5, "learning_rate": 1e-2, "schedule": "constant"},
    **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "max_steps": 3},
}


def seven(completion: str) -> float:
    return float("7" in completion)


def build(
    *callbacks: L.Callback,
    kind: type[OnPolicyTrainer] = GRPOTrainer,
    model: Any = None,
    rows: Any = ROWS,
    rewards: Any = seven,
    **settings: Any,
) -> Any:
    model = build_llama() if model is None else model
    arguments = {"train_dataset": rows, "rewards": rewards, "callbacks": list(callbacks)} | SETTINGS | settings
    return kind(model, Sorting().build_tokenizer(), **arguments)


def gpt2(positions: int) -> Any:
    sizes = {"vocab_size": 14, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, n_positions=positions, bos_token_id=None, eos_token_id=EOS))


class Silence(L.Callback):
    """Nothing is sampled yet."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        raise AssertionError("the run has begun")


class Untouchable:
    """Rows of which none is read: what is refused is refused before."""

    def __len__(self) -> int:
        raise AssertionError("the data were asked for")

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the data were read")


SETTINGS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_generations": 1}, "--num_generations must be at least 2, got 1"),
    ({"batch_size": 10}, r"whole groups of --num_generations=4 completions, got 10; try --batch_size=12"),
    ({"batch_size": 0}, "--batch_size must be above 0, got 0"),
    ({"micro_batch_size": 5}, "batch_size must be devices x accumulate_grad_batches x micro_batch_size, got 16"),
    ({"steps_per_generation": 0}, "--steps_per_generation must be above 0, got 0"),
    ({"num_iterations": 0}, "--num_iterations must be above 0, got 0"),
    ({"max_tokens_per_micro_batch": 5}, "=5 must hold a prompt and --max_new_tokens=5; raise the one or lower"),
    ({"rollout_memory": "lots"}, "--rollout_memory must be a number of tokens or a size such as 4GB"),
    ({"preset": "drgrpo"}, "--preset must be one of .*, got drgrpo; did you mean dr_grpo?"),
    ({"advantage": "std"}, "--advantage must be one of batch_std, group_mean, group_std, leave_one_out, got std"),
    ({"kl_estimator": "k4"}, "--kl_estimator must be one of k1, k2, k3, got k4"),
    ({"kl_coef": -1.0}, "--kl_coef must lie between 0 and 1000, got -1.0"),
    ({"clip_low": 1.5}, "--clip_low must lie between 0 and 1, got 1.5"),
    ({"top_entropy_share": 0.0}, "--top_entropy_share must be above 0, got 0"),
    ({"max_sampling_rounds": 0}, "--max_sampling_rounds must be above 0, got 0"),
    ({"temperature": 0.0}, "--temperature must be above 0, got 0.0$"),
    ({"max_new_tokens": 0}, "--max_new_tokens must be at least 1; got 0"),
    ({"min_new_tokens": 6}, "--min_new_tokens must be from 0 to --max_new_tokens; got 6"),
    ({"stop_strings": "end"}, "--stop_strings must be a list of texts, got the text 'end'"),
    ({"num_generation": 4}, "unknown argument num_generation; did you mean num_generations?"),
    ({"beta": 0.04}, "unknown argument beta; did you mean kl_coef?"),
    ({"max_completion_length": 9}, "unknown argument max_completion_length; did you mean max_new_tokens?"),
    ({"per_device_train_batch_size": 9}, "did you mean micro_batch_size?"),
    ({"max_grad_norm": 1.0}, "unknown argument max_grad_norm; did you mean gradient_clip_val?"),
    ({"rewards": "mth"}, "there is no reward 'mth'; did you mean math?"),
    ({"rewards": []}, "--rewards needs at least one reward function"),
    ({"packing_length": 64}, "--packing_length=64 is about rows to learn from"),
    ({"group_by_length": True}, "--group_by_length=True is about rows to learn from"),
    ({"data_workers": 2}, "--data_workers=2 is about rows to learn from"),
    ({"val_every_n_steps": 5}, "--val_every_n_steps=5 is about rows to learn from"),
    ({"val_dataset": ROWS}, "val_dataset holds rows to learn from, .*; give held-out prompts to callbacks.Evaluate"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), SETTINGS_REFUSED, ids=[str(s) for s, _ in SETTINGS_REFUSED])
def test_settings_are_refused_before_the_data_are_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        build(rows=Untouchable(), **settings)
    assert "\n" not in str(refusal.value)
    if "rewards" not in settings:
        with pytest.raises(UserError, match=message):  # as the command line asks, before it loads anything
            GRPOTrainer.check(**SETTINGS | settings)


def needy(completion: str, answer: str) -> float:
    return float(completion == answer)


def one_by_one() -> Iterator[dict[str, str]]:
    yield from ROWS


DATA_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"rows": []}, "training data: no rows"),
    "no prompt": ({"rows": [{"question": "1>"}]}, r"columns are \['question'\]; .* --columns='{prompt: question}'"),
    "no such column": ({"columns": {"prompt": "ask"}}, "'prompt' is to be 'ask', and the row has no such column"),
    "an empty prompt": ({"rows": [*ROWS, {"prompt": ""}]}, "training data:row 13: 'prompt' must be .* got an empty"),
    "all too long": ({"max_prompt_length": 4}, "all 12 prompts are longer than --max_prompt_length=4, the"),
    "many too long": ({"rows": [*ROWS, {"prompt": "1" * 30}], "max_prompt_length": 9}, "1 of 13 .*--max_dropped_share"),
    "a reward's column": ({"rewards": needy}, "reward 'needy' needs the column 'answer', and the data have prompt"),
    "no template": ({"system_prompt": "Sort!"}, "--system_prompt needs a chat template and the tokenizer has none"),
    "a stream": ({"rows": one_by_one()}, r"prompts must be at hand, .*\(generator\); give a list of them"),
    "a longer prompt": ({"max_tokens_per_micro_batch": 9}, "=9 must hold the longest prompt and --max_new_tokens=5"),
    "no such token": ({"stop_token_ids": [14]}, "--stop_token_ids must be tokens of the model, 0 to 13, got 14"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA_REFUSED)
def test_data_are_refused_in_one_line(case: str) -> None:
    settings, message = DATA_REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        build(**settings)
    assert "\n" not in str(refusal.value)


def test_a_rewards_column_is_missed_before_the_prompts_are_tokenized() -> None:
    class Costly(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            assert index == 0, "a second row was read"
            return super().__getitem__(index)

    with pytest.raises(UserError, match="needs the column 'answer'"):
        build(rows=Costly(ROWS), rewards=needy)


def test_what_only_a_run_can_tell_is_refused_before_its_first_rollout() -> None:
    with pytest.raises(UserError, match="train_dataset must be given, or a loader of prompts"):
        build(rows=None).train()
    rows = [*[{"prompt": "1>"}] * 400, {"prompt": "123456>"}]  # the last one's turn would come late
    for settings, message in (
        (
            {"model": gpt2(positions=11)},
            r"--max_new_tokens \(5\) make 12 tokens; GPT2LMHeadModel has 11 positions",
        ),
        ({"rollout_memory": 8}, r"--rollout_memory holds 8 tokens, but the longest prompt \(7\) and"),
    ):
        with pytest.raises(UserError, match=message):
            build(Silence(), rows=rows, **settings).train()
    build(model=gpt2(positions=12), rows=rows).train()


WITHOUT_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({"kl_estimator": "k1"}, "--kl_estimator=k1 has no effect without --kl_coef"),
    ({"preset": "cispo", "clip_low": 0.1}, "--clip_low: no effect with cispo"),
    ({"max_sampling_rounds": 3}, "--max_sampling_rounds has no effect without --dynamic_sampling"),
    ({"stop_token_ids": []}, "no end-of-text token, so that every completion is --max_new_tokens long"),
]


@pytest.mark.parametrize(("settings", "message"), WITHOUT_EFFECT)
def test_settings_without_effect_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        build(**settings)


def test_a_reference_without_a_penalty_is_told() -> None:
    with pytest.warns(UserWarning, match="reference has no effect without --kl_coef"):
        module = build(reference=build_llama())
    assert module.reference is None


def test_a_reference_that_cannot_do_what_the_policy_does_is_refused() -> None:
    def bloom(size: int) -> Any:
        return BloomForCausalLM(BloomConfig(vocab_size=size, hidden_size=16, n_layer=1, n_head=2))

    for reference, message in (
        (bloom(14), "the reference must keep packed documents apart, .* Bloom.*; use --layout=padded"),
        (bloom(13), "the reference must know the tokens of the policy, it has 13 and the policy 14"),
    ):
        with pytest.raises(UserError, match=message):
            build(Silence(), reference=reference, preset="grpo").train()
    module = build(reference=bloom(14), preset="grpo", layout="padded", max_steps=1).train()
    assert module.trainer.callback_metrics["train/kl"] > 0


def test_an_adapter_that_has_learned_is_told_what_it_is_pulled_to() -> None:
    """Not to where it begins, as a model without an adapter is."""
    model = add_lora(build_llama(), LoRASettings(r=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(model=model, preset="grpo")
    next(p for name, p in model.named_parameters() if "lora_B" in name).data += 1
    with pytest.warns(UserWarning, match="--kl_coef pulls towards the base model without the adapter"):
        build(model=model, preset="grpo")


def test_a_strategy_that_divides_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Divided(SingleDeviceStrategy):
        """Stands for FSDP, which Lightning refuses to build without a GPU."""

    monkeypatch.setattr("trainers.model_checks.SingleDeviceStrategy", FSDPStrategy)
    with pytest.raises(UserError, match="whole weights on every device, which Divided divides; use --strategy=ddp"):
        build(Silence(), strategy=Divided(device=torch.device("cpu"))).train()


# A loader of the user's own


def fit_batches(module: Any, batches: Any) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    L.Trainer(max_epochs=1, enable_checkpointing=False, enable_model_summary=False, **options).fit(
        module, DataLoader(batches, batch_size=None)
    )


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
def test_batches_that_cannot_be_asked_are_refused() -> None:
    own: dict[str, Any] = {"rows": None, "rewards": [needy, seven]}
    with pytest.raises(UserError, match="reward 'needy' needs the column 'answer', and the data have prompt"):
        fit_batches(build(**own), [ROWS])
    torn = {"prompt": [{"role": ["user"], "content": ["1>"]}], "answer": ["1"]}  # torch's own collate of messages
    with pytest.raises(UserError, match="a batch of prompts must be a list of rows; give DataLoader collate_fn=list"):
        fit_batches(build(**own), [torn])


@pytest.mark.filterwarnings("ignore:.*no effect with a lightning.Trainer")
def test_a_batch_goes_on_without_prompts_that_are_too_long() -> None:
    module = build(rows=None, max_prompt_length=6)
    with pytest.warns(UserWarning, match="prompts of more than --max_prompt_length=6 tokens are left out of batches"):
        fit_batches(module, [[*ROWS[:3], {"prompt": "1234567>"}]])
    assert len(module.experience.prompts) == 3


# Rewards


def test_a_function_that_applies_to_no_completion_has_no_mean() -> None:
    def never(completion: str) -> None:
        return None

    figures = build(rewards=[seven, never], max_steps=1).train().trainer.callback_metrics
    assert "train/reward_seven" in figures
    assert "train/reward_never" not in figures


def test_rewards_that_never_differ_are_told_with_the_likely_reasons() -> None:
    model = build_llama()
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(
        UserWarning, match="nothing to learn for 10 iterations: every completion scores 0.5; the task is"
    ):
        build(model=model, rewards=lambda completion: 0.5, max_steps=10, stop_token_ids=[EOS]).train()
    assert all(map(torch.equal, before, model.parameters()))

    def of_the_prompt(prompt: str, completion: str) -> float:
        return float(prompt[3])

    with pytest.warns(UserWarning, match="score the same; raise --temperature or --num_generations; 100% are cut off"):
        build(rewards=of_the_prompt, max_steps=10, stop_token_ids=[EOS], min_new_tokens=5).train()


def raises(completion: str) -> float:
    raise KeyError("answer")


FAULTS: dict[str, tuple[Any, str]] = {
    "raises": (raises, r"reward 'raises' raised KeyError: 'answer' \(test_grpo_bad_input.py:\d+\); prompt '1"),
    "NaN": (lambda completion: math.nan, "returned nan; prompt '1"),
    "text": (lambda completion: "1", "returned '1' .* instead of a number or None; prompt"),
    "too few": (lambda completions: [1.0] * (len(completions) - 1), "returned 15 scores for 16 completions"),
    "none applies": (lambda completion: None, "no reward function applies to a row"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reward_that_gives_no_score_stops_the_run_in_one_line(fault: str) -> None:
    function, message = FAULTS[fault]
    with pytest.raises(TrainingStopped, match=message) as stop:
        build(rewards={"class_path": function, "name": "raises"}).train()
    assert "\n" not in str(stop.value)


def test_a_score_stands_in_for_one_that_is_missing() -> None:
    def moody(completion: str) -> float:
        return 1 / completion.count("7")

    rewards = build_rewards(moody, on_error=-1.0)
    with pytest.warns(
        UserWarning, match="'moody' failed on .* which score -1.0 as --reward_on_error says; .*ZeroDivision"
    ):
        module = build(rewards=rewards).train()
    assert module.experience.completions["score"].min() == -1
    assert all(p.isfinite().all() for p in module.model.parameters())


# Policies


def always(token: int, *, never: bool = False) -> Any:
    """A policy that writes one token whatever it is asked, or never that one."""
    model = build_llama()
    head = torch.nn.Linear(16, 14, bias=True)
    head.weight = model.lm_head.weight
    head.bias.data.zero_()
    head.bias.data[token] = -50.0 if never else 20.0
    head.bias.requires_grad_(False)
    model.lm_head = head
    return model


def scores_in_turn() -> Any:
    """A reward that completions that are all the same differ in."""
    turns = itertools.cycle((0.0, 1.0, 2.0))
    return lambda completion: next(turns)


@pytest.mark.parametrize("preset", ["dapo", "grpo", "gspo"])
def test_a_policy_that_says_nothing(preset: str) -> None:
    """One token, the end of text: there is something to learn from it, and nothing divides by zero."""
    module = build(model=always(EOS), rewards=scores_in_turn(), preset=preset).train()
    figures = module.trainer.callback_metrics
    assert figures["train/completion_tokens"] == 1
    assert figures["train/truncated"] == 0
    assert 0 < figures["train/grad_norm"] < 10
    assert all(p.isfinite().all() for p in module.model.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_a_policy_that_never_ends(masked: bool) -> None:
    model = always(EOS, never=True)
    before = [p.clone() for p in model.parameters()]
    guarded = build(NaNGuard(), model=model, mask_truncated=masked, max_steps=10, preset="grpo")
    if not masked:
        figures = guarded.train().trainer.callback_metrics
        assert figures["train/grad_norm"] > 0
    else:
        with pytest.warns(
            UserWarning, match="every completion is cut off, and --mask_truncated leaves those out; raise"
        ):
            figures = guarded.train().trainer.callback_metrics
        assert figures["train/grad_norm"] == 0
        assert all(map(torch.equal, before, model.parameters()))
    assert figures["train/truncated"] == 1
    assert figures["train/completion_tokens"] == figures["train/longest_completion"] == 5
    assert figures["train/loss"].isfinite()


class Poison(L.Callback):
    """From the second step on a token is no number to the policy."""

    def __init__(self) -> None:
        self.hit: set[int] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != 1:
            return
        self.hit = {row for row, ids in zip(batch.rows, batch.input_ids, strict=True) if (ids == 11).any()}
        embedding = module.model.get_input_embeddings()
        embedding.register_forward_hook(lambda _, ids, out: out.masked_fill((ids[0] == 11)[..., None], math.nan))


def test_a_loss_that_is_no_number_names_its_completions() -> None:
    poison = Poison()
    with pytest.raises(NonFiniteLoss, match="stopped before step 2, epoch 0: the loss is nan in micro-batch 1") as stop:
        build(poison, NaNGuard(), layout="padded", steps_per_generation=2).train()
    named = {int(number) for number in str(stop.value).partition("(rows ")[2].partition(")")[0].split(", ")}
    assert named == poison.hit
    assert 0 < len(named) < 16
