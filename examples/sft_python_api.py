"""Supervised fine-tuning from Python: rows in a list, a held-out part, the run's folder, the exported model.

It needs no download: model and rows are those of the built-in sorting task. Run it with ``python
examples/sft_python_api.py``; about half a minute on a CPU.
"""

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks import default_callbacks
from relax import run_folder
from relax.tasks import TASKS
from trainers import SFTTrainer


def main() -> None:
    """Train, look at the figures, load the result as anybody would."""
    task = TASKS["sorting"]
    rows = [{"prompt": "52713>", "completion": "12357"}, *task.train_rows(3000)]  # any list of dicts will do
    train_rows, held_out_rows = rows[:-300], rows[-300:]

    folder = run_folder.fresh("example")  # runs/example-DATE-TIME
    trainer = SFTTrainer(
        task.build_model(),
        task.build_tokenizer(),
        train_dataset=train_rows,
        val_dataset=held_out_rows,
        learning_rate=5e-3,
        schedule="wsd",
        warmup_steps=10,
        batch_size=64,
        max_steps=120,
        val_every_n_steps=40,
        gradient_clip_val=1.0,
        accelerator="auto",
        output_dir=folder,
        callbacks=default_callbacks(folder, checkpoint_every_n_steps=40, monitor="val/loss"),
    )
    trainer.train()

    figures = {name: float(value) for name, value in trainer.trainer.callback_metrics.items()}
    print(f"after {trainer.trainer.global_step} steps: held-out loss {figures['val/loss']:.3f}")
    print(f"everything lies in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"52713> {answer(str(folder / 'model'), '52713>')}")


def answer(model_folder: str, prompt: str) -> str:
    """The greedy completion of ``prompt`` by an exported model; nothing of ReLax is needed for it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    inputs: Any = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main()
