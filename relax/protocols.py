"""What callbacks and loggers may find in a batch, a module or a logger, if it is there: asked with ``isinstance``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import lightning as L
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from relax.data.audit import Audit
    from relax.experience import Experience
    from relax.rollout import Sampling


@runtime_checkable
class HasRows(Protocol):
    """A micro-batch that knows which rows of the data set it holds."""

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows."""
        ...


@runtime_checkable
class HasNumTokens(Protocol):
    """A micro-batch that knows how many real tokens it holds."""

    @property
    def num_tokens(self) -> int:
        """Tokens, padding not counted."""
        ...


@runtime_checkable
class Exportable(Protocol):
    """A module that can write itself as others load it; called on every rank."""

    def export(self, folder: Path) -> None:
        """Write the model into ``folder``."""
        ...


@runtime_checkable
class RowLosses(Protocol):
    """A module that can say the loss of every row of a micro-batch."""

    def row_losses(self, batch: Any) -> dict[int, float]:
        """Loss by row of the data set."""
        ...


@runtime_checkable
class BufferedLogger(Protocol):
    """A logger that holds rows back; they are written out before a checkpoint is."""

    def flush(self) -> None:
        """Write everything out, and the next row at once."""
        ...


@runtime_checkable
class KeepsFolders(Protocol):
    """A logger that can keep a folder of files with the run."""

    def log_folder(self, folder: Path) -> None:
        """Copy ``folder`` to the run's artifacts."""
        ...


@runtime_checkable
class KeepsTables(Protocol):
    """A logger that can keep a table with the run."""

    def keep_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep ``rows``, which all have the same columns, as table ``name``, in place of what it held."""
        ...


@runtime_checkable
class MarksInterruption(Protocol):
    """A logger that tells an interrupted run from a finished one."""

    def mark_interrupted(self) -> None:
        """The run is about to end early, by a signal, and may be resumed."""
        ...


@runtime_checkable
class StopsOnSignals(Protocol):
    """A callback that ends a run when a signal comes."""

    exit_code: int | None
    """What the process is to be left with; None where no signal came."""


@runtime_checkable
class Auditable(Protocol):
    """A module that can say what it is about to train on."""

    def audit(self) -> "Audit":
        """The figures of the training data."""
        ...


@runtime_checkable
class HasKLCoef(Protocol):
    """A module whose objective holds ``kl_coef`` times a KL divergence from a reference."""

    kl_coef: float
    """May be set at any time; acts from the next micro-batch on."""


@runtime_checkable
class HasExperience(Protocol):
    """A module that keeps what its policy did in the current iteration."""

    @property
    def experience(self) -> "Experience | None":
        """Of all ranks, on each of them; None before the first rollout."""
        ...


@runtime_checkable
class HasReference(Protocol):
    """A module whose policy is held near a reference; a property, for Python 3.12 does not see a submodule here."""

    @property
    def reference(self) -> "nn.Module | None":
        """A frozen model of its own; None where there is none, or an adapter that can be switched off instead."""
        ...


@runtime_checkable
class HasTokenizer(Protocol):
    """A module that knows how its model reads text."""

    tokenizer: "PreTrainedTokenizerBase"


@runtime_checkable
class HasSampling(Protocol):
    """A module whose policy writes: how long, where it ends, how tokens are drawn."""

    sampling: "Sampling"
    stop_strings: Sequence[str]
    """What ``sampling.stop_when`` looks for."""


@runtime_checkable
class ReadsPrompts(Protocol):
    """A module that knows how rows become its policy's prompts."""

    reading: Mapping[str, Any]
    """Keywords of ``relax.data.prompts.encode_prompts``."""


@runtime_checkable
class WatchesEvaluation(Protocol):
    """A callback or module that is told the figures of `Evaluate`, which asks outside of Lightning's validation."""

    def on_evaluation_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", figures: Mapping[str, float], seconds: float
    ) -> None:
        """On every rank: after ``trainer.global_step`` optimizer steps the figures are these; it took ``seconds``."""
        ...
