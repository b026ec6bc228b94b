"""Supervised fine-tuning: parse the flags, load model and data, build the trainer, train."""

from typing import Any, Literal

from relax.cli import Forwarded, run

GROUPS = {
    "Model": ("model", "dtype", "attn_implementation", "revision", "chat_template", "trust_remote_code", "quantize"),
    "Data": ("task", "dataset", "dataset_name", "dataset_split", "val_dataset", "val_split"),
    "LoRA": (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_modules_to_save",
        "use_rslora",
        "use_dora",
        "adapter",
    ),
    "Run": ("output_dir", "logger", "callbacks", "checkpoint_every_n_steps", "keep_checkpoints", "monitor"),
}


def main(
    *,
    model: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
    dataset_name: str | None = None,
    dataset_split: str = "train",
    val_dataset: str | None = None,
    val_split: float = 0.0,
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    quantize: Literal["4bit"] | None = None,
    lora_r: int | None = None,
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
    lora_target_modules: str | list[str] | None = None,
    lora_modules_to_save: list[str] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    adapter: str | None = None,
    output_dir: str | None = None,
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = "mlflow",
    callbacks: list[str | dict[str, Any]] | None = None,
    checkpoint_every_n_steps: int = 500,
    keep_checkpoints: int = 2,
    monitor: str | None = None,
    **settings: Any,
) -> None:
    pass
