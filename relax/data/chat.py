"""Chat templates: a conversation -> its text, and the spans of the text to learn. Knows no token ids.

The template is the only authority on where a turn begins and ends. A template with ``{% generation %}`` markers says so
itself; any other is asked by rendering prefixes of the conversation: an answer begins where the generation prompt ends
and ends where the template, given no later turn, ends. A template that renders an earlier turn differently once later
ones follow has no such place, and the row is refused.

What is learnt of a turn: everything from the end of the generation prompt to the end-of-turn token, that included. The
white space that templates put after it is never learnt (generation has stopped by then), and the text is cut after the
last learnt token, because nothing behind it can change the loss.
"""

import re
from itertools import chain, pairwise, takewhile
from typing import TYPE_CHECKING, Literal, NamedTuple

from jinja2 import TemplateError

from relax.data.formats import Chat, Message
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "last", "all"]
Span = tuple[int, int]

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OTHER_TEMPLATE = "give another template with --chat_template=FILE"
# A template is a program from elsewhere; this is what a wrong program, or a row it was not written for, raises.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


class Rendered(NamedTuple):
    """A conversation as text, and the character spans to learn: in order, disjoint, not empty."""

    text: str
    spans: list[Span]

    @property
    def cuts(self) -> list[int]:
        """Where the text changes between read and learnt; the last one is its end."""
        return [*chain.from_iterable(self.spans)]

    @property
    def pieces(self) -> list[str]:
        """The text cut at :attr:`cuts`: read, learnt, read, learnt, ...; a read piece may be empty."""
        return [self.text[start:end] for start, end in pairwise([0, *self.cuts])]


class ChatRenderer:
    """Renders conversations with the tokenizer's chat template and finds the spans to learn in them.

    Raises:
        UserError: the tokenizer has no chat template, or several without a default.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            raise UserError("the rows are chat messages and the tokenizer has no chat template: " + _OTHER_TEMPLATE)
        self.template: str = template
        self.special_tokens: dict[str, str] = tokenizer.special_tokens_map
        self.eos: str = self.special_tokens.get("eos_token", "")
        self.has_markers = _GENERATION_MARKER.search(self.template) is not None

    def render(self, messages: list[Message], *, generation_prompt: bool = False) -> str:
        """The conversation as text, optionally opened for the next answer."""
        return self._render(messages, generation_prompt=generation_prompt).text

    def learn(self, chat: Chat, train_on: TrainOn) -> Rendered:
        """The conversation's text up to the last learnt token, and what of it is learnt.

        ``train_on``: "completion" the answers that ``chat`` names, "last" only its last, "all" every token.

        Raises:
            UserError: the template fails on these messages, or does not say where an answer begins or ends.
        """
        if train_on == "all":
            text = self.render(chat.messages).rstrip()
            return Rendered(text, [(0, len(text))])
        answers = chat.answers if train_on == "completion" else chat.answers[-1:]
        messages = chat.messages[: answers[-1] + 1]  # what follows the last answer is neither learnt nor seen by it
        marked = self._render(messages, mark=self.has_markers)
        spans = self._marked_spans(messages, answers[0], marked) or self._prefix_spans(messages, answers, marked.text)
        return Rendered(marked.text[: spans[-1][1]], spans)

    def _render(self, messages: list[Message], *, generation_prompt: bool = False, mark: bool = False) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[messages],
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=mark,
                **self.special_tokens,
            )
        except _TEMPLATE_ERRORS as error:
            what = "these messages" if messages else "no messages (the conversation begins with an assistant turn)"
            reason = " ".join(str(error).split())
            raise UserError(f"the chat template fails on {what}: {reason}; correct them or {_OTHER_TEMPLATE}") from None
        return Rendered(texts[0], marks[0] if mark else [])

    def _marked_spans(self, messages: list[Message], first: int, marked: Rendered) -> list[Span]:
        """The spans that the template's own markers give, from turn ``first`` on; none if it marks nothing.

        An end-of-sequence token right behind a span belongs to it: without it the model would never learn to stop.
        """
        earlier = messages[:first] if any(message["role"] == "assistant" for message in messages[:first]) else []
        begin = len(self._prefix(self.render(earlier), marked.text, first, [])) if earlier and marked.spans else 0
        spans = []
        for start, end in marked.spans:
            stop = end + len(self.eos) if marked.text.startswith(self.eos, end) else end
            stop = start + len(marked.text[start:stop].rstrip())
            if start >= begin and stop > start:
                spans.append((start, stop))
        return spans

    def _prefix_spans(self, messages: list[Message], answers: list[int], text: str) -> list[Span]:
        """The spans found by rendering the conversation up to each answer, without and with it."""
        spans: list[Span] = []
        for turn in answers:
            answered = text.rstrip() if turn == answers[-1] else self._answered(messages[: turn + 1], text)
            end = len(self._prefix(answered, text, turn, answers))
            start = len(self._prefix(self.render(messages[:turn], generation_prompt=True), text, turn, answers))
            if end <= start or (spans and start < spans[-1][1]):
                raise UserError(
                    f"the chat template renders message {turn + 1}, an answer, to nothing; {_OTHER_TEMPLATE}"
                )
            spans.append((start, end))
        return spans

    def _answered(self, messages: list[Message], text: str) -> str:
        """The text up to the end of the last of ``messages``; ``text`` goes on with later turns.

        Some templates (Phi-3) close a conversation, not a turn, with an eos token: it is gone once a turn follows.
        """
        answered = self.render(messages).rstrip()
        return answered if text.startswith(answered) else answered.removesuffix(self.eos).rstrip()

    def _prefix(self, prefix: str, text: str, turn: int, answers: list[int]) -> str:
        if text.startswith(prefix):
            return prefix
        at = len([*takewhile(lambda pair: pair[0] == pair[1], zip(prefix, text, strict=False))])
        way_out = f"learn only the last answer with --train_on=last, or {_OTHER_TEMPLATE}"
        raise UserError(
            f"the chat template is not stable at message {turn + 1}: up to there it writes {prefix[at : at + 30]!r} "
            f"where the whole conversation has {text[at : at + 30]!r}, so what to learn cannot be told; "
            f"{way_out if len(answers) > 1 else _OTHER_TEMPLATE}"
        )
