"""A reward model learns what is better, and scores the same for the trainer, for RewardModel and for transformers."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from byte_tokenizers import byte_tokenizer, family_tokenizer
from peft import PeftModel
from reward_run import Gradients, exported, figures, fit, random_pairs, scorer, sorting_pairs
from tiny_models import logits, shake, tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from relax.lora import LoRASettings, add_lora
from relax.rewards.reward_model import RewardModel
from relax.sequence_classifier import classifier_of, load_classifier
from relax.tasks.sorting import Sorting
from trainers import RewardTrainer

CUTS: list[dict[str, Any]] = [
    {"layout": "padded", "micro_batch_size": 2},
    {"layout": "padded", "max_tokens_per_micro_batch": 125},
    {"layout": "packed", "micro_batch_size": 8},
    {"layout": "packed", "max_tokens_per_micro_batch": 250},
    {"layout": "packed", "gradient_checkpointing": True},
    {"layout": "packed", "micro_batch_size": 1, "data_workers": 1},
]
QUESTIONS = ["How are you?", "1+1=", "A longer question than the others, is it not?"]
ANSWERS = ["Fine, and you?", "2", "It is."]


def rows(count: int = 24) -> list[dict[str, str]]:
    return [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": f"No, not even {i} of it"} for i in range(count)]


def test_every_cut_gives_the_same_gradients_also_of_a_last_step_that_is_smaller() -> None:
    gradients = [fit(random_pairs(21), centering_coef=0.01, **cut)[0] for cut in CUTS]
    assert len(gradients[0]) == 6
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=1e-9, atol=1e-12)


def test_it_learns_which_answer_is_right_from_a_language_model(tmp_path: Path) -> None:
    task = Sorting()
    model = load_classifier(str(task.policy_folder), seed=1)
    _, trainer = fit(
        sorting_pairs(3000), model, val_dataset=sorting_pairs(300, held_out=True), learning_rate=1e-3, batch_size=64,
        max_steps=45, max_epochs=None, val_every_n_steps=45, precision="32-true", micro_batch_size=64,
    )  # fmt: skip
    found = figures(trainer)
    assert found["val/accuracy"] > 0.97
    assert found["val/loss"] < 0.1
    assert found["val/calibration_error"] < 0.05
    assert found["val/reward_margin"] == pytest.approx(
        found["val/chosen_reward"] - found["val/rejected_reward"], abs=1e-4
    )
    held_out = sorting_pairs(50, held_out=True, seed=2)
    score = RewardModel(exported(trainer, tmp_path / "model"))
    right, wrong = (
        score([row["prompt"] for row in held_out], [row[side] for row in held_out]) for side in ("chosen", "rejected")
    )
    assert sum(a > b for a, b in zip(right, wrong, strict=True)) >= 48


def test_margin_and_centering_do_what_they_are_for() -> None:
    def last(**settings: Any) -> dict[str, float]:
        model = load_classifier(str(Sorting().policy_folder), seed=1)
        settings = {"learning_rate": 1e-3, "batch_size": 32, "max_steps": 25, "precision": "32-true"} | settings
        return figures(fit(sorting_pairs(400), model, max_epochs=None, **settings)[1])

    plain, wide, centred = last(), last(margin=6.0), last(centering_coef=0.1)
    assert "train/nll" not in plain
    assert wide["train/reward_margin"] > plain["train/reward_margin"] + 1
    assert wide["train/nll"] < wide["train/loss"]
    off_centre = [abs(each["train/chosen_reward"] + each["train/rejected_reward"]) for each in (plain, centred)]
    assert off_centre[1] < off_centre[0] / 2


def hugging_face(folder: str, texts: list[str], model: Any = None, **how: Any) -> list[float]:
    """As any user would: the tokenizer pads, the model reads."""
    model = model or AutoModelForSequenceClassification.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt", **how)
    with torch.no_grad():
        return model.eval()(**batch).logits[:, 0].tolist()


@pytest.mark.parametrize(("kind", "pad"), [("llama", "<pad>"), ("gpt2", None), ("qwen3", "</s>")])
def test_transformers_and_reward_model_score_an_export_as_the_trainer_does(
    kind: str, pad: str | None, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(None, bos_token=None, pad_token=pad)
    trainer = RewardTrainer(
        classifier_of(tiny_model(kind)), tokenizer, train_dataset=rows(), batch_size=8, max_steps=3, learning_rate=0.02,
        accelerator="cpu", enable_progress_bar=False, data_cache="none",
    ).train()  # fmt: skip
    folder = exported(trainer, tmp_path / "model")
    texts = [q + a for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    trainer.model.eval().config.pad_token_id = None
    with torch.no_grad():
        expected = [trainer.model(torch.tensor([tokenizer(text).input_ids])).logits.item() for text in texts]
    assert RewardModel(folder)(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert hugging_face(folder, texts) == pytest.approx(expected, abs=1e-5)
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert (config.num_labels, config.problem_type, config.id2label) == (1, "regression", {0: "reward"})
    assert "AutoModelForSequenceClassification" in (tmp_path / "model/README.md").read_text()
    assert "pipeline_tag: text-classification" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("family", ["chatml", "mistral", "llama3"])
def test_a_conversation_that_ends_with_the_padding_token_is_scored_at_its_end(family: str, tmp_path: Path) -> None:
    """Mistral's template ends a turn with the end-of-text token, the usual padding: read one token too early."""
    tokenizer = family_tokenizer(family)
    tokenizer.pad_token = tokenizer.eos_token
    before = str(tokenizer.special_tokens_map)
    trainer = RewardTrainer(
        classifier_of(tiny_model(vocab_size=len(tokenizer), max_position_embeddings=256)), tokenizer,
        train_dataset=rows(), batch_size=8, max_steps=3, accelerator="cpu", enable_progress_bar=False,
        data_cache="none", learning_rate=0.02,
    ).train()  # fmt: skip
    assert str(tokenizer.special_tokens_map) == before, "the user's own stays as it is"
    folder = exported(trainer, tmp_path / "model")
    asked = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in asked]
    trainer.model.eval().config.pad_token_id = None
    with torch.no_grad():
        ids = tokenizer(texts, add_special_tokens=False).input_ids
        expected = [trainer.model(torch.tensor([each])).logits.item() for each in ids]
    assert RewardModel(folder)(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert hugging_face(folder, texts, add_special_tokens=False) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_trains_itself_and_the_head_and_is_exported_with_it_merged_too(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tokenizer = byte_tokenizer(None, bos_token=None)
    tokenizer.save_pretrained(base)
    model = add_lora(load_classifier(str(base), seed=3), LoRASettings(4), task_type="SEQ_CLS")
    trained = {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}
    trainer = RewardTrainer(
        model, tokenizer, train_dataset=rows(), batch_size=8, max_steps=4, learning_rate=0.02, accelerator="cpu",
        enable_progress_bar=False, merge_adapter=True, data_cache="none",
    ).train()  # fmt: skip
    assert "modules_to_save" in trained
    folder = exported(trainer, tmp_path / "model")
    texts = [q + a for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    live = trainer.model.eval()
    expected = [live(torch.tensor([tokenizer(text).input_ids])).logits.item() for text in texts]
    assert len({round(score, 3) for score in expected}) == 3
    assert RewardModel(folder)(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    merged = str(tmp_path / "model/merged")
    assert RewardModel(merged)(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert hugging_face(merged, texts) == pytest.approx(expected, abs=1e-5)
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    theirs = PeftModel.from_pretrained(theirs, folder)  # as the card says
    theirs.config.pad_token_id = tokenizer.pad_token_id
    assert hugging_face(folder, texts, theirs) == pytest.approx(expected, abs=1e-5)
    assert "num_labels=1" in (tmp_path / "model/README.md").read_text()


def test_beside_an_adapter_on_a_backbone_in_half_precision_the_head_is_trained_exactly(tmp_path: Path) -> None:
    """Updates of 1e-5 are below half of what bfloat16 tells apart at the size of a head's weights."""
    base, tokenizer = tmp_path / "base", byte_tokenizer(None, bos_token=None)
    tiny_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = add_lora(load_classifier(str(base), dtype="bfloat16"), LoRASettings(4), task_type="SEQ_CLS")
    head = model.get_base_model().score
    before = head.modules_to_save["default"].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*half precision.*")
        trainer = RewardTrainer(
            model, tokenizer, train_dataset=rows(), batch_size=8, max_steps=1, learning_rate=1e-5, accelerator="cpu",
            enable_progress_bar=False, merge_adapter=True, data_cache="none",
        ).train()  # fmt: skip
    moved = (head.modules_to_save["default"].weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-5), rtol=0.05, atol=0)
    folder = exported(trainer, tmp_path / "model")
    texts = [q + a for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    live = trainer.model.eval()
    expected = [live(torch.tensor([tokenizer(text).input_ids])).logits.item() for text in texts]
    assert RewardModel(folder, dtype="bfloat16")(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-3)
    merged = RewardModel(f"{folder}/merged", dtype="bfloat16")(QUESTIONS, ANSWERS)
    assert merged == pytest.approx(expected, abs=0.03)
    assert torch.tensor(merged).bfloat16().tolist() != merged  # more than three digits


def test_a_reward_model_is_gone_on_with_and_keeps_its_head(tmp_path: Path) -> None:
    first = scorer()
    first.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_classifier(str(tmp_path), seed=7)
    assert torch.equal(again.score.weight, first.score.weight)


def test_a_fresh_head_depends_on_the_seed_alone_and_the_body_is_that_of_the_language_model(tmp_path: Path) -> None:
    policy = tiny_model()
    policy.save_pretrained(tmp_path)
    before = logits(policy)
    loaded, again, other = (load_classifier(str(tmp_path), seed=seed) for seed in (1, 1, 2))
    made = classifier_of(policy, seed=1)
    assert torch.equal(loaded.score.weight, made.score.weight)
    assert torch.equal(loaded.score.weight, again.score.weight)
    assert not torch.equal(loaded.score.weight, other.score.weight)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), policy.model.parameters(), strict=True))
    shake(made)
    assert torch.equal(logits(policy), before), "a copy"
    assert policy.config.architectures != ["LlamaForSequenceClassification"]


def test_lightning_trainer_fit_gives_the_same_gradients() -> None:
    ours, _ = fit(random_pairs(), micro_batch_size=4)
    log = Gradients()
    module = RewardTrainer(
        scorer(),
        Sorting().build_tokenizer(),
        train_dataset=random_pairs(),
        learning_rate=1e-2,
        batch_size=8,
        micro_batch_size=4,
    )
    L.Trainer(
        max_epochs=2, precision="64-true", accelerator="cpu", accumulate_grad_batches=2, callbacks=[log], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module)  # fmt: skip
    torch.testing.assert_close(log.seen, ours, rtol=0, atol=0)


def test_mixed_precision_reads_scores_in_full_precision() -> None:
    _, trainer = fit(random_pairs(), precision="bf16-mixed", micro_batch_size=4)
    batch = trainer._batches.epoch(0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = trainer.compute_loss(batch)
    assert loss.dtype == torch.float32
    assert metrics["reward_margin"] != metrics["reward_margin"].bfloat16()


def test_a_dry_run_takes_the_step_with_the_largest_micro_batch() -> None:
    trainer = RewardTrainer(
        scorer(), Sorting().build_tokenizer(), train_dataset=random_pairs(), batch_size=4, micro_batch_size=1,
        accelerator="cpu", layout="padded",
    )  # fmt: skip
    dry = trainer.dry_run()
    assert (dry.longest_row, dry.tokens) == (60, 120)
    assert dry.micro_batches == 4


def test_the_loss_of_each_pair_is_told_by_its_number() -> None:
    _, trainer = fit(random_pairs(20), batch_size=20, max_epochs=1, centering_coef=0.1, learning_rate=1e-12)
    batch = trainer._batches.epoch(0)[0]
    losses = trainer.row_losses(batch)
    assert sorted(losses) == list(range(1, 21))
    assert sum(losses.values()) / 20 == pytest.approx(figures(trainer)["train/loss"], rel=1e-5)
