"""run_sft.py as its users run it: own files, LoRA, export, configuration, mistakes."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import run_sft

ROWS = [{"prompt": f"{a}{b}>", "completion": f"{min(a, b)}{max(a, b)}"} for a in range(10) for b in range(10)]
SMALL = ["--batch_size=20", "--max_epochs=1", "--logger=none", "--accelerator=cpu", "--enable_progress_bar=false"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_llama: Callable, tokenizer: Any) -> Path:
    """A working directory with a model folder and a data file."""
    monkeypatch.chdir(tmp_path)
    make_llama().save_pretrained("base")
    tokenizer.save_pretrained("base")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def start(*flags: str) -> tuple[int, str, str]:
    """The script's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_sft.cli(flags)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def logits(model: Any) -> torch.Tensor:
    return model.eval()(torch.tensor([[5, 6, 3, 7]])).logits.detach()


def test_own_data_full_fine_tuning_and_the_exported_folder(here: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, out, err = start(
        "--model=base", "--dataset=rows.jsonl", "--val_split=0.1", "--output_dir=run", "--learning_rate=1e-2", *SMALL
    )
    assert code == 0, err
    assert "Training data: 90 rows" in out
    assert "Validation data: 10 rows" in out
    assert "Everything lies in run/" in out
    names = {path.name for path in (here / "run").iterdir()}
    written = {"run.json", "config.yaml", "metrics.jsonl", "data_audit.txt", "data_audit.json", "checkpoints", "model"}
    assert names == written
    figures = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert figures[-1]["step"] == 5
    assert "val/token_accuracy" in figures[-1]
    trained = AutoModelForCausalLM.from_pretrained("run/model")
    assert not torch.equal(logits(trained), logits(AutoModelForCausalLM.from_pretrained("base")))
    assert AutoTokenizer.from_pretrained("run/model").eos_token == "<eos>"
    card = Path("run/model/README.md").read_text()
    assert str(here) not in card
    assert "| val/token_accuracy |" in card


def test_lora_adapter_merge_and_continued_adapter(here: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = ["--model=base", "--dataset=rows.jsonl", "--learning_rate=1e-2", *SMALL]
    code, out, err = start(*flags, "--lora_r=4", "--use_rslora", "--merge_adapter", "--output_dir=first")
    assert code == 0, err
    assert "of them trained" in out
    base = AutoModelForCausalLM.from_pretrained("base")
    untouched = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, "first/model"))
    assert not torch.allclose(adapted, untouched)
    merged = AutoModelForCausalLM.from_pretrained("first/model/merged")
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-5)

    code, _, err = start(*flags, "--adapter=first/model", "--output_dir=second")
    assert code == 0, err
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "second/model")
    assert not torch.allclose(logits(again), adapted)
    assert again.peft_config["default"].r == 4


def test_the_written_configuration_gives_the_same_run(here: Path) -> None:
    code, _, err = start(
        "--model=base",
        "--dataset=rows.jsonl",
        "--lora_r=2",
        "--lora_target_modules=q_proj,v_proj",
        "--learning-rate=3e-3",
        "--max_time={minutes: 5}",
        "--betas=0.9,0.95",
        "--output_dir=a",
        *SMALL,
    )
    assert code == 0, err
    config = yaml.safe_load(Path("a/config.yaml").read_text())
    assert config["lora_target_modules"] == ["q_proj", "v_proj"]
    code, _, err = start("--config=a/config.yaml", "--output_dir=b")
    assert code == 0, err
    weights = [Path(f, "model/adapter_model.safetensors").read_bytes() for f in "ab"]
    assert weights[0] == weights[1]
    again = yaml.safe_load(Path("b/config.yaml").read_text())
    assert {**again, "output_dir": "a"} == config


def test_own_callbacks_by_dotted_path_with_arguments(here: Path) -> None:
    Path("studies").mkdir()
    Path("studies/noise.py").write_text(
        "import lightning as L\n"
        "class NoiseScale(L.Callback):\n"
        "    def __init__(self, path='noise.txt'):\n"
        "        self.path = path\n"
        "    def on_train_end(self, trainer, module):\n"
        "        open(self.path, 'w').write(str(trainer.global_step))\n"
    )
    flags = ["--model=base", "--dataset=rows.jsonl", *SMALL]
    code, _, err = start(*flags, "--output_dir=a", "--callbacks=studies.noise.NoiseScale")
    assert code == 0, err
    assert Path("noise.txt").read_text() == "5"
    Path("c.yaml").write_text(
        "callbacks:\n- class_path: studies.noise.NoiseScale\n  init_args: {path: other.txt}\n"
        "- lightning.pytorch.callbacks.RichProgressBar\n"
    )
    code, _, err = start(*flags[:-1], "--output_dir=b", "--config=c.yaml")
    assert code == 0, err
    assert Path("other.txt").exists()


def test_resume_of_a_finished_run_says_so_and_changes_nothing(here: Path) -> None:
    flags = ["--model=base", "--dataset=rows.jsonl", "--output_dir=run", *SMALL]
    assert start(*flags)[0] == 0
    before = {p: p.read_bytes() for p in [Path("run/metrics.jsonl"), Path("run/model/model.safetensors")]}
    code, _, err = start(*flags, "--resume=auto")
    assert code == 0, err
    assert {p: p.read_bytes() for p in before} == before


def test_gradient_checkpointing_packed_and_padded_train_alike(here: Path) -> None:
    flags = ["--model=base", "--dataset=rows.jsonl", "--learning_rate=1e-2", *SMALL]
    losses = []
    for number, extra in enumerate(
        (["--layout=packed"], ["--layout=padded", "--micro_batch_size=5"], ["--gradient_checkpointing"])
    ):
        code, _, err = start(*flags, *extra, f"--output_dir=run{number}")
        assert code == 0, err
        lines = Path(f"run{number}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train/loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


MISTAKES = [
    (["--dataset=rows.jsonl"], "--dataset=rows.jsonl needs --model=NAME"),
    (["--model=base"], "--model=base needs data: add --dataset=FILE"),
    (["--model=base", "--dataset=row.jsonl"], r"row.jsonl.*did you mean.*rows.jsonl"),
    (["--model=bas", "--dataset=./rows.jsonl", "--revision=x"], "bas"),
    (["--model=./nowhere", "--dataset=rows.jsonl"], "nowhere"),
    (["--model=base", "--dataset=empty.jsonl"], "empty.jsonl.*(empty|no rows)"),
    (["--model=base", "--dataset=broken.jsonl"], "broken.jsonl:2: not valid JSON"),
    (["--model=base", "--dataset=columns.jsonl"], r"columns \['answer', 'question'\]"),
    (["--model=base", "--dataset=chat.jsonl"], "chat_template"),
    (["--model=base", "--dataset=rows.jsonl", "--lora_r=4", "--lora_target_modules=w_q"], "w_q.*q_proj"),
    (["--model=base", "--dataset=rows.jsonl", "--lora_alpha=4"], "--lora_alpha: no effect without --lora_r"),
    (["--model=base", "--dataset=rows.jsonl", "--quantize=4bit"], "add --lora_r=16"),
    (["--model=base", "--dataset=rows.jsonl", "--quantize=4bit", "--lora_r=4"], "CUDA|bitsandbytes"),
    (["--model=base", "--dataset=rows.jsonl", "--batch_size=9", "--micro_batch_size=2"], "--micro_batch_size"),
    (["--model=base", "--dataset=rows.jsonl", "--accelerator=gpu", "--devices=8"], "Lightning refuses a setting"),
    (["--model=base", "--dataset=rows.jsonl", "--learing_rate=1"], "did you mean --learning_rate"),
    (["--model=base", "--dataset=rows.jsonl", "--learning_rate=fast"], "--learning_rate.*fast"),
    (["--model=base", "--dataset=rows.jsonl", "--layout=dense"], "auto, packed, padded"),
    (["--model=base", "--dataset=rows.jsonl", "--max_length=3"], "trainable|target"),
    (["--model=base", "--dataset=rows.jsonl", "--callbacks=nowhere.Mine"], "nowhere"),
    (["--model=base", "--dataset=rows.jsonl", "--val_split=0.5", "--val_dataset=rows.jsonl"], "only one of"),
    (["--model=base", "--dataset=rows.jsonl", "--resume=auto"], "--resume=auto needs the run's folder"),
    (["--model=base", "--dataset=rows.jsonl", "--resume=none.ckpt"], "none.ckpt"),
    (["--model=base", "--dataset=rows.jsonl", "--adapter=base"], "no adapter_config.json"),
    (["--model=base", "--dataset=rows.jsonl", "--monitor=val/los", "--val_split=0.1"], "val/los"),
    (["--config=missing.yaml"], "missing.yaml"),
    (["--model=base", "--dataset=rows.jsonl", "--monitor=val/loss"], "--monitor=val/loss needs validation data"),
    (["--model=base", "--dataset=rows.jsonl", "--val_dataset=rows.jsonl"], "is the training data; name another split"),
    (["--model=base", "--dataset=rows.jsonl", "--adapter=x", "--lora_dropout=0.1"], "no effect with --adapter"),
    (["--model=base", "--dataset=rows.jsonl", "--adapter=x", "--lora_r=4"], "only one of --lora_r=4 and --adapter=x"),
    (["--model=no_eos", "--dataset=rows.jsonl"], "no end-of-sequence token"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_no_traceback(
    flags: list[str], message: str, here: Path, tokenizer: Any, make_llama: Callable
) -> None:
    import re

    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text('{"text": "5"}\n{"text": \n')
    Path("columns.jsonl").write_text('{"question": "5", "answer": "6"}\n')
    chat = {"messages": [{"role": "user", "content": "5"}, {"role": "assistant", "content": "6"}]}
    Path("chat.jsonl").write_text(json.dumps(chat) + "\n")
    if "--model=no_eos" in flags:
        from transformers import AutoTokenizer

        make_llama().save_pretrained("no_eos")
        bare = AutoTokenizer.from_pretrained("base")
        bare.eos_token = None
        bare.save_pretrained("no_eos")
    folder = [] if any("resume=auto" in flag for flag in flags) else ["--output_dir=run"]
    code, _, err = start(*flags, *folder, *(f for f in SMALL if f.split("=")[0] not in " ".join(flags)))
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
    assert "Traceback" not in err


def test_a_run_folder_is_protected(here: Path) -> None:
    flags = ["--model=base", "--dataset=rows.jsonl", "--output_dir=run", *SMALL]
    assert start(*flags)[0] == 0
    code, _, err = start(*flags)
    assert code == 2
    assert "run already holds a run; continue it with --resume=auto, replace it with --overwrite" in err
    assert start(*flags, "--overwrite")[0] == 0
    Path("file").write_text("")
    code, _, err = start(*flags[:2], "--output_dir=file", *SMALL)
    assert code == 2
    assert "--output_dir must be a folder, got the file file" in err


def test_a_tokenizer_without_pad_token_trains_and_is_saved_as_it_was(here: Path) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained("base")
    bare.pad_token = None
    bare.save_pretrained("base")
    code, _, err = start("--model=base", "--dataset=rows.jsonl", "--output_dir=run", "--layout=padded", *SMALL)
    assert code == 0, err
    assert AutoTokenizer.from_pretrained("run/model").pad_token is None


def test_csv_parquet_and_json_give_the_same_run(here: Path) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), "rows.parquet")
    Path("rows.json").write_text(json.dumps(ROWS))
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    weights = set()
    for suffix in ("jsonl", "parquet", "json", "csv"):
        code, _, err = start("--model=base", f"--dataset=rows.{suffix}", f"--output_dir={suffix}", *SMALL)
        assert code == 0, err
        weights.add(Path(suffix, "model/model.safetensors").read_bytes())
    assert len(weights) == 1


def test_chat_rows_train_assistant_turns_with_a_template_from_a_file(here: Path) -> None:
    Path("chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
        "{% else %}{{ m.content }}>{% endif %}{% endfor %}"
    )
    turns = [{"role": "user", "content": "52"}, {"role": "assistant", "content": "25"}]
    Path("chat.jsonl").write_text(json.dumps({"messages": turns * 2}) * 1 + "\n")
    code, out, err = start(
        "--model=base", "--dataset=chat.jsonl", "--chat_template=chat.jinja", "--output_dir=run", *SMALL
    )
    assert code == 0, err
    assert "1 row, 12 tokens, 50.0% of them trained" in out
    assert "eos_token" in Path("run/model/chat_template.jinja").read_text()


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_loggers_by_name(logger: str, here: Path) -> None:
    flags = [flag for flag in SMALL if "logger" not in flag]
    code, _, err = start("--model=base", "--dataset=rows.jsonl", "--output_dir=run", f"--logger={logger}", *flags)
    assert code == 0, err
    assert [path for path in Path("run/logs").rglob("*") if path.is_file()]


def test_mlflow_keeps_settings_figures_and_the_model_and_a_resumed_run_is_the_same_run(here: Path) -> None:
    from mlflow import MlflowClient

    flags = ["--model=base", "--dataset=rows.jsonl", "--output_dir=runs/mine", "--logger=mlflow"]
    flags += ["--checkpoint_every_n_steps=1", "--keep_checkpoints=9", *(f for f in SMALL if "logger" not in f)]
    assert start(*flags)[0] == 0
    for step in (4, 5):
        Path(f"runs/mine/checkpoints/step={step:08d}.ckpt").unlink()
    code, _, err = start(*flags, "--resume=auto")
    assert code == 0, err
    client = MlflowClient("sqlite:///runs/mlflow.db")
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "20"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == sorted({point.step for point in history})
    assert len(history) == 5
    assert "model" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_the_built_in_job_works_without_a_flag_and_without_the_network(tmp_path: Path) -> None:
    """But for the number of steps, which is cut."""
    from test_privacy import SWITCHES
    from tiny_models import network_calls

    root = str(Path(run_sft.__file__).parent)
    program = f"import sys; sys.path.insert(0, {root!r}); import run_sft; run_sft.cli(['--max_steps=30'])"
    assert network_calls(program, tmp_path, without=SWITCHES) == []
    [folder] = (tmp_path / "runs").glob("sft-*")
    assert (folder / "model/model.safetensors").exists()
    assert (tmp_path / "runs/mlflow.db").exists()
