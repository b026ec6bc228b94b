"""A recorded decoding step on the CPU: what a CUDA graph does to Python's decisions, without a GPU.

Every operation of one run is kept with the very tensors that it had; later runs repeat them, write the results into the
same memory and ask Python for nothing. A step that looks at a value from Python cannot be recorded, as on a GPU.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READ_BACK = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
Compute = Callable[[], Tensor]


class Tape(TorchDispatchMode):
    """Records what runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self._ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func._schema.name in _READ_BACK:
            raise RuntimeError(f"{func._schema.name} waits for the GPU")
        result = func(*args, **(kwargs or {}))
        self._ops.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self._ops:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # not a view, not written in place
                    old.copy_(new)


class Taped:
    """A ``relax.rollout.graphs.Record`` that counts: op by op at a step's first call, then recorded."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Compute) -> Compute:
        tape, outputs = Tape(), []

        def step() -> Tensor:
            if not outputs:
                self.recorded += 1
                with tape:
                    outputs.append(compute())
                return outputs[0]
            self.replayed += 1
            tape.replay()
            return outputs[0]

        return step
