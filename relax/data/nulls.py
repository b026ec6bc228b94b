"""Taking out the keys that hold ``None``: what is left of an object is what was said in it."""

from collections.abc import Collection, Mapping
from typing import Any


def without_null_keys(thing: Any, untouched: Collection[str] = ()) -> Any:
    """A copy without them, at every depth; what the keys ``untouched`` hold stays as it is."""
    if isinstance(thing, Mapping):
        kept = ((key, item) for key, item in thing.items() if item is not None)
        return {key: item if key in untouched else without_null_keys(item, untouched) for key, item in kept}
    return [without_null_keys(item, untouched) for item in thing] if isinstance(thing, list) else thing
