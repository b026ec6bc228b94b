"""A chat template as a program: messages -> text, and what its ``{% generation %}`` markers mark. Knows no roles.

transformers finds marked text by counting what has been written so far, which is wrong without a word inside of a macro
or a ``{% set %}`` block. Here a marker writes a character of its own, so its place is exact wherever it stands.
"""

import re
from itertools import accumulate
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from relax.data.examples import Message, Tool
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
OTHER_TEMPLATE = "give another template with --chat_template=FILE"

# Two of the code points that Unicode sets aside for use inside of programs: no text holds them.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_MARKER = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# A template is a program from elsewhere; this is what a wrong program, or a row it was not written for, raises.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


class TemplateFails(UserError):  # noqa: N818, it says what happened
    """The template cannot write these messages."""


class ChatTemplate:
    """The tokenizer's chat template.

    Raises:
        UserError: the tokenizer has no chat template, or several without a default.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        source = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        if source is None:
            raise UserError("the rows are chat messages and the tokenizer has no chat template: " + OTHER_TEMPLATE)
        self.source: str = source
        self.special_tokens: dict[str, str] = tokenizer.special_tokens_map
        self._marking = _MARKER.sub(_write_marker, source)

    def render(
        self, messages: list[Message], *, tools: list[Tool] | None = None, generation_prompt: bool = False
    ) -> str:
        """The conversation as text, optionally opened for the next answer."""
        return self._run(self.source, messages, tools, generation_prompt)

    def render_marked(self, messages: list[Message], *, tools: list[Tool] | None = None) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans of it that the template marks: in order, disjoint, not empty."""
        text = self.render(messages, tools=tools)
        if self._marking == self.source:
            return text, []
        marked = self._run(self._marking, messages, tools, False)
        if re.sub(f"[{_BEGIN}{_END}]", "", marked) != text:
            raise UserError(
                f"the chat template tests or changes what its own generation markers mark; {OTHER_TEMPLATE}"
            )
        return text, _marked_spans(marked)

    def _run(self, source: str, messages: list[Message], tools: list[Tool] | None, generation_prompt: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            [text], _ = render_jinja_template(
                conversations=[messages],
                tools=tools or None,  # templates ask for none, not for an empty list
                chat_template=source,
                add_generation_prompt=generation_prompt,
                **self.special_tokens,
            )
        except _TEMPLATE_ERRORS as error:
            what = "these messages" if messages else "no messages (the conversation begins with an assistant turn)"
            what += ", which call tools" if any("tool_calls" in message for message in messages) else ""
            reason = " ".join(str(error).split())
            raise TemplateFails(
                f"the chat template fails on {what}: {reason}; correct them or {OTHER_TEMPLATE}"
            ) from None
        return text


def _write_marker(tag: re.Match[str]) -> str:
    """A tag that writes a character, and treats the white space around it as the marker does."""
    left, closes, right = tag.groups()
    return f"{{%{left} if true %}}{{{{ '{_END if closes else _BEGIN}' }}}}{{% endif {right}%}}"


def _marked_spans(marked: str) -> list[Span]:
    """Where the outermost marks lie in the text without the marks."""
    pieces = re.split(f"([{_BEGIN}{_END}])", marked)
    texts, marks = pieces[::2], pieces[1::2]
    ends = [*accumulate(map(len, texts))]
    depths = accumulate(1 if mark == _BEGIN else -1 for mark in marks)
    spans: list[Span] = []
    start = 0
    for mark, depth, at in zip(marks, depths, ends, strict=False):
        if mark == _BEGIN and depth == 1:
            start = at
        elif depth == 0 and at > start:
            spans.append((start, at))
    return spans
