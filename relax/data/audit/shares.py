"""How counts and shares of a whole are written."""

_SMALLEST = 0.001


def share_of(part: float, whole: float) -> str:
    """``4.3%``; a share that would round to nothing is ``<0.1%``, one short of the whole is never ``100.0%``."""
    share = part / whole
    if 0 < share < _SMALLEST:
        return f"<{_SMALLEST:.1%}"
    if 1 - _SMALLEST < share < 1:
        return f">{1 - _SMALLEST:.1%}"
    return f"{share:.1%}"


def counted(count: int, noun: str, ending: str = "s") -> str:
    """``1 row``, ``1,024 rows``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{ending}"


def rows_of(count: int, total: int) -> str:
    """``1 row (0.2%)``, ``12 rows (2.4%)``."""
    return f"{counted(count, 'row')} ({share_of(count, total)})"
