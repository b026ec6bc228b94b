"""Text that a model wrote, made fit for a terminal: nothing in it is obeyed, and long ones fit."""

# What would move the cursor, recolour the terminal or reorder a line.
_CONTROLS = {*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)} - {ord("\n"), ord("\t")}
_LINE_ENDS = {ord("\n"): r"\n", ord("\t"): r"\t"}
_VISIBLE = {code: repr(chr(code))[1:-1] for code in _CONTROLS}


def visible(text: str, *, lines: bool = False) -> str:
    r"""``text`` with controls written out, a line end as ``\n``; with ``lines``, line ends and tabs stay."""
    return text.translate({} if lines else _LINE_ENDS).translate(_VISIBLE)


def shortened(text: str, characters: int) -> str:
    """``text``, or if it is longer than ``characters``, its beginning and end around how much was left out."""
    if len(text) <= characters:
        return text
    head, tail = characters // 2, characters - characters // 2
    return f"{text[:head]} … {len(text) - characters:,} characters … {text[len(text) - tail :]}"
