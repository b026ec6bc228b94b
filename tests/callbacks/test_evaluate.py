"""The figures are the policy's, they come when they are due, training does not notice, and the best is kept by them."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
import pytest
import torch
from copying_policy import ROWS, Copies, copied, fit
from lightning.pytorch.loggers import CSVLogger
from tiny_run import Tiny
from torch.utils.data import DataLoader

from callbacks import Checkpoint, Evaluate, MetricsFile, Progress, Throughput
from relax.checkpoint_io import step_checkpoint
from relax.data.prompts import encode_prompts
from relax.errors import UserError
from relax.rewards import RewardFailed
from relax.rollout import Sampling
from relax.tasks.grading import accuracy

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    module, _ = fit(max_epochs=6)
    return module.model.state_dict()


def evaluate(weights: dict[str, torch.Tensor], rows: Any, rewards: Any, **settings: Any) -> dict[str, float]:
    """The figures of a trained policy, before a step more."""
    module = Copies()
    module.model.load_state_dict(weights)
    _, told = fit(Evaluate(rows, rewards, every_n_steps=99, **settings), module=module, max_steps=1)
    return told.figures[0]


@pytest.mark.parametrize(
    ("every", "arguments", "steps"),
    [
        (7, {}, [0, 7, 14, 21, 24]),
        (5, {"accumulate_grad_batches": 2}, [0, 5, 10, 12]),
        (6, {"max_steps": 12}, [0, 6, 12]),
        (99, {}, [0, 24]),
    ],
)
def test_it_asks_at_the_start_when_due_and_at_the_end(every: int, arguments: dict[str, Any], steps: list[int]) -> None:
    _, told = fit(Evaluate(ROWS, copied, every_n_steps=every), **arguments)
    assert told.steps == steps


def test_rows_are_read_as_those_that_the_module_learns_from(trained: dict[str, torch.Tensor]) -> None:
    class Asks(Copies):
        reading: ClassVar[dict[str, Any]] = {"columns": {"prompt": "question"}}

    module = Asks()
    module.model.load_state_dict(trained)
    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in ROWS]
    _, told = fit(Evaluate(rows, copied, every_n_steps=99), module=module, max_steps=1)
    assert told.figures[0] == evaluate(trained, ROWS, copied)


def test_accuracy_is_what_generate_gives() -> None:
    module, told = fit(Evaluate(ROWS, copied, every_n_steps=8))
    found = accuracy(module.model, module.tokenizer, ROWS, lambda prompt, text: copied(text, prompt[:1]))
    assert told.figures[24]["val/accuracy"] == found
    assert 0.5 < found <= 1.0


def test_pass_at_k_is_the_chance_that_the_model_gives(trained: dict[str, torch.Tensor]) -> None:
    samples, temperature = 400, 1.3
    sampling = Sampling(max_new_tokens=8, temperature=temperature)
    figures = evaluate(trained, ROWS, copied, num_samples=samples, ks=(1, 3), sampling=sampling)
    module = Copies()
    module.model.load_state_dict(trained)
    with torch.no_grad():
        logprobs = module.model.eval()(module.ids[:, :-1]).logits[:, 1:].div(temperature).log_softmax(-1)
    chances = logprobs.gather(2, module.ids[:, 2:, None]).sum((1, 2)).exp().double()
    error = (chances * (1 - chances) / samples).sum().sqrt() / len(ROWS)
    assert 0.1 < chances.mean() < 0.9
    assert abs(figures["val/pass@1"] - chances.mean()) < 4 * error
    assert figures["val/pass@3"] == pytest.approx(float(1 - (1 - chances).pow(3).mean()), abs=0.05)


def test_training_does_not_notice() -> None:
    alone, _ = fit()
    asked, _ = fit(Evaluate(ROWS, copied, every_n_steps=3, num_samples=2))
    assert asked.losses == alone.losses


def test_the_same_policy_gives_the_same_figures(trained: dict[str, torch.Tensor]) -> None:
    settings: dict[str, Any] = {"num_samples": 3, "sampling": Sampling(max_new_tokens=4, temperature=3.0)}
    first = evaluate(trained, ROWS, copied, **settings)
    assert evaluate(trained, ROWS, copied, **settings) == first
    assert evaluate(trained, ROWS, copied, seed=1, **settings)["val/pass@1"] != first["val/pass@1"]


def test_an_answer_that_was_cut_off_is_not_right(trained: dict[str, torch.Tensor]) -> None:
    figures = evaluate(trained, ROWS, copied, sampling=Sampling(max_new_tokens=1))
    assert (figures["val/reward"], figures["val/truncated"], figures["val/accuracy"]) == (1.0, 1.0, 0.0)
    assert figures["val/completion_length"] == 1.0


def test_a_text_ends_before_a_stop_string(trained: dict[str, torch.Tensor]) -> None:
    seen = []

    def note(completion: str) -> float:
        seen.append(completion)
        return 1.0

    figures = evaluate(trained, ROWS, note, sampling=Sampling(max_new_tokens=4), stop_strings=["7"])
    assert seen[: len(ROWS)] == [*"0123456", "", "8", "9"]
    assert figures["val/truncated"] == 0.0


def test_which_reward_says_what_is_right_and_where_none_applies(trained: dict[str, torch.Tensor]) -> None:
    def sometimes(completion: str, answer: str) -> float | None:
        return None if int(answer) < 4 else 0.5 if int(answer) < 7 else 1.0

    def shape(completion: str) -> float:
        return 0.25

    rewards = [(shape, 2.0), sometimes]
    figures = evaluate(trained, ROWS, rewards, correct="sometimes")
    assert figures["val/accuracy"] == 0.5  # 7, 8, 9 of 4 to 9
    assert figures["val/reward_sometimes"] == pytest.approx((3 * 0.5 + 3 * 1.0) / 6)
    assert figures["val/reward_shape"] == 0.25
    assert figures["val/reward"] == pytest.approx(2 * 0.25 + (3 * 0.5 + 3 * 1.0) / 10)
    assert evaluate(trained, ROWS, rewards)["val/accuracy"] == 0.0  # by the first


def test_scores_that_never_reach_1_are_told_once(trained: dict[str, torch.Tensor]) -> None:
    def graded(completion: str, answer: str) -> float:
        return 0.7 * copied(completion, answer)

    def told(reward: Any, *, of: dict[str, torch.Tensor]) -> list[str]:
        module = Copies()
        module.model.load_state_dict(of)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(Evaluate(ROWS, reward, every_n_steps=1), module=module, max_steps=2)
        return [str(warning.message) for warning in caught if "val/accuracy" in str(warning.message)]

    (message,) = told(graded, of=trained)
    assert "no evaluated answer scores 1 by the reward 'graded', the best 0.7" in message
    assert message.endswith("give --monitor=val/reward")
    assert told(copied, of=trained) == []
    assert told(lambda completions: [0.0 for _ in completions], of=trained) == []


def test_of_many_prompts_some_are_asked_evenly_spaced() -> None:
    asked = []

    def note(completion: str, prompt: str) -> float:
        asked.append(prompt)
        return 0.0

    fit(Evaluate(ROWS, note, every_n_steps=99, max_prompts=4), max_steps=1)
    assert asked == ["0>", "2>", "5>", "7>"] * 2


def test_a_module_that_samples_says_how() -> None:
    class Samples(Copies):
        sampling = Sampling(max_new_tokens=5, stop_ids=(1,), temperature=2.0)
        stop_strings: tuple[str, ...] = ()

    _, told = fit(Evaluate(ROWS, copied, every_n_steps=99), module=Samples(), max_steps=1)
    assert told.figures[0]["val/completion_length"] == 5.0


def test_prompts_may_come_encoded(trained: dict[str, torch.Tensor]) -> None:
    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in ROWS]
    prompts = encode_prompts(rows, Copies().tokenizer, columns={"prompt": "question"})
    assert evaluate(trained, prompts, copied) == evaluate(trained, ROWS, copied)


def test_loggers_and_other_callbacks_see_every_figure(tmp_path: Path) -> None:
    seen: dict[int, float] = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen[trainer.global_step] = float(trainer.callback_metrics["val/accuracy"])

    logger = CSVLogger(tmp_path, name="", version="")
    _, told = fit(Evaluate(ROWS, copied, every_n_steps=8), Look(), logger=logger, log_every_n_steps=5)
    found = [row.split(",") for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    at, step = found[0].index("val/accuracy"), found[0].index("step")
    logged = {int(row[step]): float(row[at]) for row in found[1:] if row[at]}
    assert logged == {step: figures["val/accuracy"] for step, figures in told.figures.items()}
    assert seen == {step: logged[step // 8 * 8] for step in range(1, 25)}


def test_the_file_of_metrics_has_a_row_of_each_in_full_precision(tmp_path: Path) -> None:
    evaluation = Evaluate(ROWS, copied, every_n_steps=7, num_samples=3, ks=(2,))
    _, told = fit(evaluation, MetricsFile(tmp_path / "m.jsonl"), log_every_n_steps=5)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    found = {row.pop("step"): row for row in rows if "val/accuracy" in row}
    assert {step: {k: v for k, v in row.items() if "/" in k} for step, row in found.items()} == told.figures
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 10, 15, 20]
    assert all("val/accuracy" not in row for row in rows if "train/loss" in row)


def test_progress_tells_it_and_no_validation_tells_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = [Evaluate(ROWS, copied, every_n_steps=4), Progress()]
    fit(*run, module=Validated(), val_check_interval=3, max_steps=6, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "  val/" in line]
    told = [(line.split()[1], "val/accuracy" in line, "val/loss" in line) for line in lines]
    assert told == [("0", True, False), ("3", False, True), ("4", True, False), ("6", True, False), ("6", False, True)]


def test_throughput_leaves_it_out() -> None:
    class Slow(Evaluate):
        def _ask(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
            time.sleep(0.5)
            return {}

    class Batch(NamedTuple):
        num_tokens: int = 1000

    class Counts(Copies):
        def train_dataloader(self) -> Any:
            return DataLoader([Batch()] * 6, batch_size=None)

    speed = Throughput(every_n_steps=1)
    fit(Slow(ROWS, copied, every_n_steps=1), speed, module=Counts(), max_steps=5)
    assert speed.tokens_per_second > 4000  # with its half second a step, below 2,000


class Killed(BaseException):
    """Ends a run as a kill does."""


class KillAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def savers(folder: Path) -> tuple[Evaluate, Checkpoint]:
    """In the wrong order they would work as well: Lightning puts checkpoints last."""
    evaluate = Evaluate(ROWS, copied, every_n_steps=4, num_samples=2, ks=(2,))
    return evaluate, Checkpoint(folder, every_n_steps=6, monitor="val/accuracy", mode="max")


@pytest.mark.parametrize("killed_at", [7, 13, 16])
def test_the_best_checkpoint_is_the_one_with_the_best_accuracy_after_a_resume_too(
    tmp_path: Path, killed_at: int
) -> None:
    module, told = fit(*savers(tmp_path / "whole"))
    assert told.steps == [0, 4, 8, 12, 16, 20, 24]
    found = {step: figures["val/accuracy"] for step, figures in told.figures.items() if step}
    best = max(found, key=lambda step: (found[step], -step))
    assert len({*found.values()}) > 2
    saved = torch.load(tmp_path / "whole/best.ckpt", weights_only=True)
    assert saved["global_step"] == best

    with pytest.raises(Killed):
        fit(KillAt(killed_at), *savers(tmp_path / "killed"))
    from_step = killed_at // 6 * 6
    resumed, saver = savers(tmp_path / "killed")
    path = step_checkpoint(tmp_path / "killed", from_step)
    again, told_again = fit(resumed, saver, ckpt_path=path)
    assert told_again.figures == {step: f for step, f in told.figures.items() if step > from_step}
    assert (saver.best_step, saver.best_value) == (best, found[best])
    weights = torch.load(tmp_path / "killed/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in saved["state_dict"].items())
    assert again.losses == module.losses[from_step:]


def test_a_resumed_run_has_the_figures_of_before(tmp_path: Path) -> None:
    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.seen = float(trainer.callback_metrics["val/accuracy"])

    look = Look()
    evaluate, saver = savers(tmp_path)
    _, told = fit(evaluate, saver, max_steps=6)
    fit(look, *savers(tmp_path), ckpt_path=step_checkpoint(tmp_path, 6), max_steps=7)
    assert look.seen == told.figures[6]["val/accuracy"]


class Validated(Copies):
    """With a validation loss beside the figures."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", abs(self.global_step - 9.0), batch_size=1)

    def val_dataloader(self) -> Any:
        return [0]


@pytest.mark.parametrize("monitor", ["val/accuracy", "val/loss"])
def test_validation_and_evaluation_side_by_side(tmp_path: Path, monitor: str) -> None:
    """Each checkpoint is chosen where its metric was measured, not where the other one was."""
    mode: Any = "max" if monitor == "val/accuracy" else "min"
    saver = Checkpoint(tmp_path, monitor=monitor, mode=mode)
    _, told = fit(Evaluate(ROWS, copied, every_n_steps=4), saver, module=Validated(), val_check_interval=3)
    found = {step: figures["val/accuracy"] for step, figures in told.figures.items() if step}
    best = max(found, key=lambda step: (found[step], -step)) if monitor == "val/accuracy" else 9
    assert saver.best_step == best
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == best


def test_mistakes_are_told_before_anything_is_trained() -> None:
    for settings, message in (
        ({"every_n_steps": 0}, "above 0, got 0 and None"),
        ({"num_samples": 4, "ks": (1, 8)}, "between 1 and num_samples=4, got 8"),
        ({"ks": (2,)}, "num_samples=1, got 2"),
        ({"correct": "exact"}, "one of the rewards, copied, got exact"),
    ):
        with pytest.raises(UserError, match=message):
            Evaluate(ROWS, copied, **{"every_n_steps": 1} | settings)
    greedy = Sampling(max_new_tokens=1, greedy=True)
    for evaluation, module, message in (
        (Evaluate(ROWS, copied, every_n_steps=1), Tiny(), "needs a module with model and tokenizer, Tiny"),
        (Evaluate([], copied, every_n_steps=1), Copies(), "evaluation data: no rows"),
        (Evaluate([{"prompt": "1>"}], copied, every_n_steps=1), Copies(), "answer"),
        (Evaluate(ROWS, copied, every_n_steps=1, num_samples=2, sampling=greedy), Copies(), "must not be greedy"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            fit(evaluation, module=module)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_reward_that_can_say_nothing_of_any_prompt() -> None:
    def nothing(completion: str) -> None:
        return None

    rewards = [copied, nothing]
    with pytest.raises(UserError, match="'nothing' says which answers are right, but applies to none of the 10"):
        fit(Evaluate(ROWS, rewards, every_n_steps=1, correct="nothing"))
    with pytest.raises(RewardFailed, match="no reward function applies"):
        fit(Evaluate(ROWS, nothing, every_n_steps=1))


@pytest.mark.slow
def test_two_ranks_ask_what_one_asks(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"every_n_steps": 5, "num_samples": 3, "ks": [1, 3], "max_prompts": 7}
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "evaluated_run.py"), str(tmp_path), json.dumps(settings)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    _, told = fit(Evaluate(ROWS, copied, **settings), max_steps=15)
    for rank in (0, 1):
        figures = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {int(step): values for step, values in figures.items()} == told.figures
