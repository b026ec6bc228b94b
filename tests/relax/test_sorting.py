"""The built-in task: its data and their split, its grade, and the greedy accuracy that the scripts print."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from relax.errors import UserError
from relax.tasks import TASKS
from relax.tasks.grading import accuracy, greedy_completions, text_before_end
from relax.tasks.sorting import demonstration, is_held_out, lazy_solution, slip, solution

TASK = TASKS["sorting"]
FITTED = [{"prompt": f"{digits}>", "answer": "".join(sorted(digits))} for digits in ("3142", "98765", "27182818")]


def test_rows_are_the_ones_the_published_figures_speak_of() -> None:
    assert TASK.train_rows(3) == [
        {"prompt": "3548294>", "completion": "3458294"},
        {"prompt": "738975>", "completion": "378975"},
        {"prompt": "0416>", "completion": "0146"},
    ]
    assert TASK.eval_rows(2) == [{"prompt": "2517>", "answer": "1257"}, {"prompt": "7526>", "answer": "2567"}]


def test_rows_depend_on_the_seed_alone_and_a_longer_list_starts_with_the_shorter() -> None:
    assert TASK.train_rows(50, seed=3) == TASK.train_rows(200, seed=3)[:50]
    assert TASK.train_rows(50, seed=3) != TASK.train_rows(50, seed=4)
    assert len(TASK.train_rows()) == 20_000
    assert len(TASK.eval_rows()) == 500


def test_no_training_prompt_is_ever_an_evaluation_prompt() -> None:
    train = {row["prompt"] for seed in range(3) for row in TASK.train_rows(20_000, seed)}
    held_out = {row["prompt"] for seed in range(3) for row in TASK.eval_rows(2_000, seed)}
    assert not train & held_out
    four_digits = [f"{number:04d}>" for number in range(10_000)]
    assert 900 < sum(map(is_held_out, four_digits)) < 1_100  # otherwise chance alone would keep the sides apart


def test_demonstrators_are_lazy_on_three_quarters_of_the_long_inputs_only() -> None:
    rows = TASK.train_rows()
    assert {len(row["prompt"]) for row in rows} == {5, 6, 7, 8, 9}
    assert all(row["completion"] in (solution(row["prompt"]), lazy_solution(row["prompt"])) for row in rows)
    wrong_short = [row for row in rows if len(row["prompt"]) <= 6 and row["completion"] != solution(row["prompt"])]
    assert wrong_short == []
    telling = [
        row for row in rows if len(row["prompt"]) > 6 and solution(row["prompt"]) != lazy_solution(row["prompt"])
    ]
    lazy = sum(row["completion"] == lazy_solution(row["prompt"]) for row in telling)
    assert lazy / len(telling) == pytest.approx(0.75, abs=0.015)  # 3.6 standard errors of 12,000 draws


@pytest.mark.parametrize(
    ("prompt", "lazy"), [("9273815>", "2793815"), ("654321>", "456321"), ("87654321>", "56784321")]
)
def test_lazy_means_the_first_half_sorted_and_the_rest_as_it_stood(prompt: str, lazy: str) -> None:
    assert lazy_solution(prompt) == lazy
    assert {demonstration(prompt, random.Random(seed)) for seed in range(20)} == {lazy, solution(prompt)}


def test_pairs_prefer_the_right_answer_to_lazy_ones_and_to_slips() -> None:
    rows = TASK.preference_rows(4_000)
    assert rows[:50] == TASK.preference_rows(50)
    assert rows[:50] != TASK.preference_rows(50, seed=1)
    assert {len(row["prompt"]) for row in rows} == {5, 6, 7, 8, 9}
    for row in rows:
        assert TASK.grade(row["prompt"], row["chosen"]) == 1.0
        assert TASK.grade(row["prompt"], row["rejected"]) == 0.0
    lazy = sum(row["rejected"] == lazy_solution(row["prompt"]) for row in rows)
    assert 0.4 < lazy / len(rows) < 0.6
    sizes = {len(row["rejected"]) - len(row["chosen"]) for row in rows}
    assert sizes == {-1, 0, 1}, "a reward that counts digits alone must not do"


def test_pairs_of_held_out_prompts() -> None:
    assert not any(is_held_out(row["prompt"]) for row in TASK.preference_rows(2_000))
    assert all(is_held_out(row["prompt"]) for row in TASK.held_out_preference_rows())
    assert len(TASK.held_out_preference_rows()) == 500


@pytest.mark.parametrize("prompt", ["1111>", "12345678>", "87654321>", "0990>"])
def test_a_slip_is_never_right(prompt: str) -> None:
    assert solution(prompt) not in {slip(prompt, random.Random(seed)) for seed in range(300)}


@pytest.mark.parametrize("wrong", ["", "12375", "1235", "123577", " 12357", "12357>", "12?357", "12<pad>357"])
def test_the_grade_asks_for_exactly_the_sorted_digits(wrong: str) -> None:
    assert TASK.grade("52713>", "12357") == 1.0
    assert TASK.grade("52713>", wrong) == 0.0


def test_the_tokenizer_reads_characters_and_survives_saving(tmp_path: Path) -> None:
    tokenizer = TASK.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, reloaded):
        ids = each("52713>12357").input_ids
        assert len(ids) == len("52713>12357")
        assert each.decode(ids) == "52713>12357"
        assert each.decode(each("1a2\n").input_ids, skip_special_tokens=True) == "1?2?"
        assert (each.pad_token, each.eos_token, each.bos_token) == ("<pad>", "<eos>", None)
        assert each.pad_token_id != each.eos_token_id
    assert reloaded("0123456789>").input_ids == tokenizer("0123456789>").input_ids


def test_the_model_is_a_function_of_its_seed_and_survives_saving(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model, same, other = TASK.build_model(1), TASK.build_model(1), TASK.build_model(2)
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.tensor([TASK.build_tokenizer()("52713>").input_ids])
    assert torch.equal(model(ids).logits, same(ids).logits)
    assert not torch.equal(model(ids).logits, other(ids).logits)
    assert model.num_parameters() == 101_568
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded(ids).logits, model(ids).logits)
    tokenizer = TASK.build_tokenizer()
    assert (reloaded.generation_config.pad_token_id, reloaded.generation_config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )


@pytest.fixture(scope="module")
def fitted() -> PreTrainedModel:
    """A model that knows the three rows of ``FITTED``, of unequal lengths, trained with padding on the right."""
    model, tokenizer = TASK.build_model(), TASK.build_tokenizer()
    texts = [row["prompt"] + row["answer"] + tokenizer.eos_token for row in FITTED]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    for label, row in zip(labels, FITTED, strict=True):
        label[: len(row["prompt"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("batch_size", [1, 2, 250])
def test_accuracy_of_a_model_that_knows_the_answers(fitted: PreTrainedModel, batch_size: int) -> None:
    tokenizer = TASK.build_tokenizer()
    assert accuracy(fitted, tokenizer, FITTED, TASK.grade, batch_size) == 1.0
    unknown = {"prompt": "1111>", "answer": "1111"}
    assert accuracy(fitted, tokenizer, [*FITTED, unknown], TASK.grade, batch_size) == 0.75


def test_a_completion_does_not_depend_on_the_prompts_beside_it(fitted: PreTrainedModel) -> None:
    tokenizer = TASK.build_tokenizer()
    prompts = [row["prompt"] for row in TASK.eval_rows(25)]  # unseen ones: answers as arbitrary as they are sensitive
    together = greedy_completions(fitted, tokenizer, prompts, max_new_tokens=9)
    alone = [greedy_completions(fitted, tokenizer, [prompt], max_new_tokens=9)[0] for prompt in prompts]
    assert together == alone


def test_accuracy_counts_an_answer_that_does_not_end_in_time_as_wrong(fitted: PreTrainedModel) -> None:
    tokenizer = TASK.build_tokenizer()
    prompt = FITTED[0]["prompt"]
    assert greedy_completions(fitted, tokenizer, [prompt], max_new_tokens=4) == [None]
    assert greedy_completions(fitted, tokenizer, [prompt], max_new_tokens=5) == ["1234"]
    assert accuracy(fitted, tokenizer, [{"prompt": prompt, "answer": "123"}], lambda *_: 1.0) == 0.0


def test_a_special_token_inside_an_answer_is_not_mended_away() -> None:
    tokenizer = TASK.build_tokenizer()
    ids = tokenizer("12<pad>357<eos>4").input_ids
    assert text_before_end(tokenizer, ids) == "12<pad>357"
    assert text_before_end(tokenizer, tokenizer("12357").input_ids) is None


def test_accuracy_leaves_the_model_as_it_was(fitted: PreTrainedModel) -> None:
    fitted.train()
    fitted.model.embed_tokens.eval()  # a frozen part that someone keeps in eval mode
    modes = [module.training for module in fitted.modules()]
    random_state = torch.get_rng_state()
    accuracy(fitted, TASK.build_tokenizer(), FITTED, TASK.grade)
    assert [module.training for module in fitted.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_accuracy_without_rows_is_refused(fitted: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="at least 1 evaluation row"):
        accuracy(fitted, TASK.build_tokenizer(), [], TASK.grade)


def test_naming_the_tasks_loads_no_transformers() -> None:
    code = "import sys, relax.tasks, relax.tasks.grading; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_policy_that_ships_with_the_project_is_small_and_right_for_half_of_the_prompts() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = TASKS["sorting"]
    assert sum(file.stat().st_size for file in task.policy_folder.iterdir()) < 1_000_000
    model = AutoModelForCausalLM.from_pretrained(task.policy_folder)
    tokenizer = AutoTokenizer.from_pretrained(task.policy_folder)
    assert 0.47 <= accuracy(model, tokenizer, task.eval_rows(), task.grade) <= 0.53
    assert tokenizer.get_vocab() == task.build_tokenizer().get_vocab()
