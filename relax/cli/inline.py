"""A name with settings in the text of one flag: ``linear,end=0,steps=1000``. Knows neither names nor settings."""

from relax.errors import UserError


def read_inline(flag: str, text: str) -> tuple[str, dict[str, str]]:
    """The name, and the settings behind it as text.

    Raises:
        UserError: there is no name, or a part that is no ``key=value``, or a key that comes twice.
    """
    name, *parts = (part.strip() for part in text.split(","))
    settings: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value) or key in settings:
            raise UserError(f"--{flag} is a name and then key=value, each once, with commas between, got {text!r}")
        settings[key] = value
    if not name or "=" in name:
        raise UserError(f"--{flag} begins with a name, got {text!r}")
    return name, settings
