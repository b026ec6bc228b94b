"""CUDA graphs: a decoding step recorded once and then launched as one, without Python and without gaps on the GPU.

A recorded step does what the kernels did, at the same addresses, whatever Python would have decided since. What can be
recorded is therefore written for it: ``relax.rollout.columns.FixedColumns`` and ``relax.rollout.steps.FixedStep``.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Compute = Callable[[], Tensor]
Record = Callable[[Compute], Compute]
"""Makes a step that may be called many times; what it returns holds until any recorded step is called again."""


class UnrecordableError(RuntimeError):
    """A step asks for something that a recording cannot hold, such as a look at a value from the CPU."""


class CudaGraphs:
    """A ``Record``. The steps share their scratch memory, as only one works at a time."""

    def __init__(self) -> None:
        # Other threads may use the GPU meanwhile: those that load data do.
        self._recording = partial(
            torch.cuda.graph, pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local"
        )

    def __call__(self, compute: Compute) -> Compute:
        """``compute``, op by op at its first call, recorded at its second."""
        return _Graph(compute, self._recording)


class _Graph:
    """The first call is no waste: it warms up what libraries set up lazily, which must not happen while recording."""

    def __init__(self, compute: Compute, recording: Callable[[torch.cuda.CUDAGraph], torch.cuda.graph]) -> None:
        self._compute, self._recording = compute, recording
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None

    def __call__(self) -> Tensor:
        if not self._is_warm:
            self._is_warm = True
            return self._compute()
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()
        assert self._output is not None
        return self._output

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one brings the stream back where recording fails, which ``torch.cuda.graph`` does not.
            with torch.cuda.stream(torch.cuda.current_stream()), self._recording(graph):
                self._output = self._compute()
        except torch.AcceleratorError as error:
            raise UnrecordableError(f"a decoding step cannot be recorded: {str(error).splitlines()[0]}") from error
        return graph


def recorder(device: torch.device) -> Record | None:
    """How steps are recorded on ``device``; None: they are not."""
    return CudaGraphs() if device.type == "cuda" else None
