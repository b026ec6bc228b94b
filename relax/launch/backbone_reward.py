"""The reward model of ``--reward_model`` where it is an adapter of the model that the policy adapts, too.

It is then computed on the policy's own backbone, which is not loaded twice; and as that is loaded after the rewards
are chosen, it is attached when the policy is there.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from relax.rewards.adapter_reward import AdapterReward
from relax.rewards.reading import Turns
from relax.rewards.specs import Entry

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

CONFIG = "adapter_config.json"
JUDGE = "model"
"""What a reward model is called in figures: ``reward_model``."""


class BackboneReward:
    """A reward function, once it is attached.

    Args:
        folder: of the adapter with its score head.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._scores: AdapterReward | None = None

    @classmethod
    def pick(cls, folder: str | None, base: str | None, revision: str | None) -> Self | None:
        """The reward of ``folder``, if it is that of an adapter of ``base``, and not of another revision."""
        config = None if folder is None else Path(folder) / CONFIG
        if folder is None or config is None or not config.is_file():
            return None
        adapted = json.loads(config.read_text(encoding="utf-8"))
        same = base is not None and _same(adapted.get("base_model_name_or_path"), base)
        return cls(folder) if same and adapted.get("revision") in (None, revision) else None

    @property
    def entry(self) -> Entry:
        """Among the rewards; it runs in this thread, in the precision of the run, and may take as long as it takes."""
        return {"class_path": self, "name": JUDGE, "isolated": False, "time_limit_seconds": math.inf}

    def attach(self, policy: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Load the adapter into ``policy``.

        Raises:
            UserError: it is no reward model, or does not fit.
        """
        self._scores = AdapterReward(policy, tokenizer, self.folder)

    def __call__(self, prompts: Sequence[Turns], completions: Sequence[str]) -> list[float]:
        """One score a completion."""
        assert self._scores is not None, "attached before the run"
        return self._scores(prompts, completions)


def _same(name: str | None, other: str) -> bool:
    """Whether two names are of one model: hub names, or folders."""
    return name is not None and (name == other or Path(name).resolve() == Path(other).resolve())
