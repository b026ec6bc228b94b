"""An exported reward model that is a LoRA adapter with a score head: its files, and what of them goes where.

It scores nothing: ``relax.rewards.reward_model`` loads its base, ``relax.rewards.adapter_reward`` uses the policy's.

Legend: D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from relax.errors import UserError
from relax.hub import hub_arguments, one_line_errors
from relax.lora import load_adapter, read_adapter

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
HEADS = ("score", "classifier")
"""What transformers calls the last layer of its classifiers."""


@dataclass(frozen=True)
class ScoreAdapter:
    """Settings and weights, on the CPU.

    Attributes:
        named: how messages call it.
        folder: where it lies.
        settings: PEFT's.
        weights: by the names that PEFT stores.
        head: weight [outputs, D], and bias [outputs] if it has one.
    """

    named: str
    folder: Path
    settings: "LoraConfig"
    weights: Mapping[str, Tensor]
    head: Mapping[str, Tensor]

    @classmethod
    def find(cls, name: str, source: Mapping[str, Any], flag: str = "--rewards") -> Self | None:
        """What ``source``, keywords of ``from_pretrained``, leads to, if it is an adapter.

        Raises:
            UserError: it is one, but not for a sequence classifier, or it cannot be read.
        """
        from transformers.utils import cached_file, find_adapter_config_file

        where, place = source["pretrained_model_name_or_path"], {"revision": source["revision"]}
        with one_line_errors(f"{flag}={name}", name):
            config = find_adapter_config_file(where, local_files_only=source["local_files_only"], **place)
            if config is None:
                return None
            if not source["local_files_only"]:
                cached_file(where, "adapter_model.safetensors", **place)
        return cls.read(str(Path(config).parent), named=f"{flag}={name}")

    @classmethod
    def read(cls, folder: str, *, named: str) -> Self:
        """That of a local folder.

        Raises:
            UserError: it holds no LoRA adapter with the head of a sequence classifier.
        """
        settings, weights = read_adapter(folder, task_type="SEQ_CLS", named=named)
        heads = [name for name in HEADS if f"{_PREFIX}{name}.weight" in weights]
        if not heads:
            raise UserError(
                f"{named} has no score head; give an adapter of a sequence classifier, as run_reward.py exports"
            )
        start = f"{_PREFIX}{heads[0]}."
        head = {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
        return cls(named, Path(folder), settings, weights, head)

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return len(self.head["weight"])

    @property
    def lora_weights(self) -> dict[str, Tensor]:
        """The others, by the names that PEFT stores."""
        return {key: tensor for key, tensor in self.weights.items() if not self._is_head(key)}

    def brings(self, key: str) -> bool:
        """Whether a weight of the model, by its name there, comes with the adapter."""
        return _PREFIX + key in self.weights

    @property
    def base(self) -> str:
        """Name or folder of the model that it adapts.

        Raises:
            UserError: it names none.
        """
        if not self.settings.base_model_name_or_path:
            raise UserError(f"{self.named} does not say what its base is; add base_model_name_or_path to its config")
        return str(self.settings.base_model_name_or_path)

    def base_source(self, trust_remote_code: bool) -> dict[str, Any]:
        """The keywords of ``from_pretrained`` that lead to the base.

        Raises:
            UserError: it names none, or a folder that is not there.
        """
        return hub_arguments(self.base, self.settings.revision, trust_remote_code)

    def added_to(self, base: "PreTrainedModel") -> "PreTrainedModel":
        """A classifier with it, in place.

        Raises:
            UserError: it is another one's.
        """
        return load_adapter(base, str(self.folder), task_type="SEQ_CLS", named=self.named).get_base_model()

    def _is_head(self, key: str) -> bool:
        return any(key.startswith(f"{_PREFIX}{name}.") for name in HEADS)
