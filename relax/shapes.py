"""Whether two sets of named tensors fit one another."""

from collections.abc import Mapping

from torch import Tensor


def different_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """(name, our shape, their shape) of every tensor that the two do not share, in order of the names."""
    shapes = [{name: str(tuple(tensor.shape)) for name, tensor in side.items()} for side in (ours, theirs)]
    names = sorted(shapes[0].keys() | shapes[1].keys())
    pairs = [(name, *(side.get(name, "absent") for side in shapes)) for name in names]
    return [(name, our, their) for name, our, their in pairs if our != their]
