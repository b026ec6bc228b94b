"""Flags that several scripts take, in bundles: a parameter of a script's ``main`` annotated with one takes them all.

Imports nothing heavy: the command line reads them before it knows whether there is anything to run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

from relax.cli import Forwarded

BUILT_BY_SCRIPTS = (
    *("model", "tokenizer", "train_dataset", "val_dataset", "output_dir", "config", "callbacks", "logger"),
)
"""Parameters of the trainers that their scripts give."""
NOT_FOR_POLICIES = (
    *BUILT_BY_SCRIPTS,
    *("reference", "packing_length", "group_by_length", "data_workers", "val_every_n_steps"),
)
"""The same of those that learn from rewards: what only Python can give, and what is about rows to learn from."""
# Lightning's arguments that the trainers set themselves, or that only Python can give.
NOT_FLAGS = (
    *("logger", "callbacks", "plugins", "enable_checkpointing", "default_root_dir", "use_distributed_sampler"),
    *("reload_dataloaders_every_n_epochs", "enable_autolog_hparams", "model_registry", "barebones"),
)
ACCURACY = "val/accuracy"
"""By which the best checkpoint of a policy is kept, where it can be told what is right."""
LIGHTNING = Forwarded("Lightning", "lightning.pytorch.trainer.trainer", "Trainer", without=NOT_FLAGS, brief=True)


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model is trained.

    Args:
        model: hub name or folder; default: the small model of --task.
        dtype: of the weights; default float32 (bfloat16 with --quantize). Mixed precision is --precision=bf16-mixed.
        attn_implementation: sdpa, eager, flash_attention_2, ...; default: what transformers picks.
        revision: branch, tag or commit of a hub model.
        chat_template: file with a Jinja chat template, in place of the tokenizer's own.
        trust_remote_code: run Python code that comes with the model.
        quantize: 4bit keeps the frozen weights as NF4 under a LoRA adapter (needs CUDA and bitsandbytes).
    """

    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    quantize: Literal["4bit"] | None = None


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which rows it is trained on, and which are held out.

    Args:
        dataset: .jsonl, .json, .parquet, .csv or .txt file (.gz too), folder, glob or hub name; several by commas, with
            weights as in a.jsonl:0.7,b.parquet:0.3.
        dataset_name: configuration of a hub data set.
        dataset_split: split of a hub data set or folder.
        val_dataset: held-out rows, from the same kinds of sources.
        val_dataset_split: split of them, such as validation or test.
        val_split: hold out this share of the rows (or this number, from 1 on).
    """

    dataset: str | None = None
    dataset_name: str | None = None
    dataset_split: str = "train"
    val_dataset: str | None = None
    val_dataset_split: str = "train"
    val_split: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoRAFlags:
    """Whether an adapter is trained instead of all weights.

    Args:
        lora_r: rank of a LoRA adapter; without it all weights are trained.
        lora_alpha: the adapter's update is scaled by alpha / r; default 32.
        lora_dropout: dropout on the adapter's input.
        lora_target_modules: names of the layers to adapt, or one regular expression; default all-linear.
        lora_modules_to_save: modules to train in full beside the adapter, such as lm_head.
        use_rslora: scale by alpha / sqrt(r).
        use_dora: learn magnitude and direction apart.
        adapter: continue this adapter (folder or hub name) instead of a new one.
    """

    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_target_modules: str | list[str] | None = None
    lora_modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where the run writes, and what comes along.

    Args:
        output_dir: the run's folder; default: a new one in runs, named after the kind of run and the time.
        logger: where figures go, beside metrics.jsonl in the run's folder.
        callbacks: your own Lightning callbacks by dotted path; with arguments in --config as class_path, init_args.
        keep_checkpoints: how many of the newest stay.
    """

    output_dir: str | None = None
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = "mlflow"
    callbacks: list[str | dict[str, Any]] | None = None
    keep_checkpoints: int = 2


@dataclass(frozen=True, kw_only=True)
class KeepFlags:
    """What is kept of a run on rows, or whether anything is.

    Args:
        checkpoint_every_n_steps: None saves at the end only.
        monitor: validation figure by which best.ckpt is kept, such as val/loss.
        monitor_mode: whether it is better when lower (min) or higher (max).
        dry_run: look at the data, train one step, the largest, to see whether it fits, and write nothing.
    """

    checkpoint_every_n_steps: int | None = 500
    monitor: str | None = None
    monitor_mode: Literal["min", "max"] = "min"
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class PolicyKeepFlags(KeepFlags):
    """The same of a run that learns from rewards.

    Args:
        checkpoint_every_n_steps: None saves at the end only.
        monitor: figure of the held-out prompts by which best.ckpt is kept; None keeps none.
        monitor_mode: whether it is better when lower (min) or higher (max).
        dry_run: sample, score and learn from one iteration, to see whether it fits, and write nothing.
    """

    checkpoint_every_n_steps: int | None = 50
    monitor: str | None = ACCURACY
    monitor_mode: Literal["min", "max"] = "max"


@dataclass(frozen=True, kw_only=True)
class RewardFlags:
    """What completions score.

    Args:
        rewards: name[=argument][:weight] by commas, as in math:1.0,format:0.2, or your own functions by dotted path;
            in --config also mappings. Default: that of --task.
        reward_model: folder or hub name of a reward model, such as run_reward.py writes: short for
            --rewards=model=FOLDER, and added to --rewards where both are given. A LoRA adapter of the same base that
            the policy's adapter has is computed on the policy's own backbone. The reward of --task is then only logged.
        reward_on_error: what a completion scores when a function fails on it; stop ends the run.
        reward_time_limit: seconds for one call of a function of your own; None sets no limit.
        reward_workers: processes for functions that compute long; given, for your own too. 0 starts none.
    """

    rewards: list[str | dict[str, Any]] | None = None
    reward_model: str | None = None
    reward_on_error: float | Literal["stop"] = "stop"
    reward_time_limit: float | None = 60.0
    reward_workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class WatchFlags:
    """What is looked at while a policy learns from rewards.

    Args:
        eval_every_n_steps: answer held-out prompts every so many optimizer steps, and before the first and after the
            last; None does not.
        eval_prompts: at most so many of them.
        eval_samples: completions of each that are sampled beside the greedy one, for pass@k; 1 samples none.
        log_samples_every_n_steps: show and keep some completions every so many optimizer steps; None does not.
        kl_schedule: of kl_coef: constant, linear or cosine with end=NUMBER,steps=NUMBER, or adaptive with
            target=NUMBER,horizon=NUMBER, as in linear,end=0,steps=1000.
    """

    eval_every_n_steps: int | None = 25
    eval_prompts: int | None = 500
    eval_samples: int = 1
    log_samples_every_n_steps: int | None = 10
    kl_schedule: str | None = None


@dataclass(frozen=True)
class PolicyFlags:
    """What the scripts of reinforcement learning are asked: all of the bundles, and the task."""

    source: ModelFlags
    data: DataFlags
    scoring: RewardFlags
    lora: LoRAFlags
    watching: WatchFlags
    keeping: PolicyKeepFlags
    job: RunFlags
    task: str | None


def names(bundle: Any) -> tuple[str, ...]:
    """The flags of a bundle, in order."""
    return tuple(field.name for field in fields(bundle))


def by_name(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The flags among the arguments of ``main``, bundles unpacked, as a configuration file has them."""
    flags: dict[str, Any] = {}
    for name, value in arguments.items():
        if is_dataclass(value) and not isinstance(value, type):
            flags |= asdict(value)
        else:
            flags[name] = value
    return flags


POLICY_GROUPS = {
    "Model": names(ModelFlags),
    "Data": (*names(DataFlags), "task"),
    "Rewards": names(RewardFlags),
    "LoRA": names(LoRAFlags),
    "Watching": names(WatchFlags),
    "Run": (*names(RunFlags), *names(PolicyKeepFlags)),
}
"""Headings of the help of the scripts of reinforcement learning."""
