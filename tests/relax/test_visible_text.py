"""A terminal shows what a model wrote and obeys none of it."""

from relax.visible_text import shortened, visible


def test_controls_are_written_out() -> None:
    assert visible("a\nb\t\x1b[2Jc\u202ed\x9b") == "a\\nb\\t\\x1b[2Jc\\u202ed\\x9b"
    assert visible("a\nb\t\x1b", lines=True) == "a\nb\t\\x1b"
    assert visible("naïve 文字 🙂") == "naïve 文字 🙂"


def test_long_texts_lose_their_middle() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("a" * 1000 + "b" * 1000, 5) == "aa … 1,995 characters … bbb"
    assert shortened("abcdef", 1) == " … 5 characters … f"
