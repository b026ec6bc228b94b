"""Conversations -> their text, and the spans of the text to learn. Knows no token ids.

The template is the only authority on where a turn begins and ends. A template with ``{% generation %}`` markers says so
itself; any other is asked by rendering prefixes of the conversation: an answer begins where the generation prompt ends
and ends where the template, given no later turn, ends. A template that renders an earlier turn differently once later
ones follow has no such place, and the row is refused; so is a row of which the template leaves something out.

What is learnt of a turn: everything from the end of the generation prompt to the end-of-turn token, that included. The
white space that templates put after it is never learnt (generation has stopped by then), and the text is cut after the
last learnt token, because nothing behind it can change the loss.
"""

import re
from itertools import chain, pairwise, takewhile
from typing import TYPE_CHECKING, Literal, NamedTuple

from relax.data.chat.template import OTHER_TEMPLATE, ChatTemplate, Span
from relax.data.chat.template_fit import check_nothing_left_out, in_a_form_that_fits
from relax.data.examples import Chat
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "last", "all"]


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
        self.template = ChatTemplate(tokenizer)
        self.eos: str = self.template.special_tokens.get("eos_token", "")
        tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self._tokens = tuple(sorted(tokens, key=len, reverse=True))
        self._token = re.compile("|".join(map(re.escape, self._tokens)) or "(?!)")

    def learn(self, chat: Chat, train_on: TrainOn) -> Rendered:
        """The conversation's text up to the last learnt token, and what of it is learnt.

        ``train_on``: "completion" the answers that ``chat`` names, "last" only its last, "all" every token.

        Raises:
            UserError: the template fails on these messages, leaves something out, or does not say where an answer
                begins or ends.
        """
        if train_on != "all":  # what follows the last answer is neither learnt nor seen by it
            answers = chat.answers[-1:] if train_on == "last" else chat.answers
            chat = chat._replace(messages=chat.messages[: answers[-1] + 1], answers=answers)
        return in_a_form_that_fits(
            chat.messages, lambda messages: self._learn(chat._replace(messages=messages), train_on)
        )

    def _learn(self, chat: Chat, train_on: TrainOn) -> Rendered:
        text, marks = self.template.render_marked(chat.messages, tools=chat.tools)
        check_nothing_left_out(self.template, chat, text)
        if train_on == "all":
            whole = text.rstrip()
            return Rendered(whole, [(0, len(whole))])
        spans = self._marked_spans(chat, text, marks) or self._prefix_spans(chat, text)
        return Rendered(text[: spans[-1][1]], spans)

    def _marked_spans(self, chat: Chat, text: str, marks: list[Span]) -> list[Span]:
        """The spans that the template's own markers give, less those of turns that are not to be learnt.

        End-of-turn tokens right behind a span, or behind white space, belong to it: without them the model would never
        learn to stop. What they are is seen behind the last answer, where no next turn can begin.
        """
        if not marks:
            return []
        behind = text[marks[-1][1] :]
        closing = behind.strip()
        token = self._token.match(closing)
        end_of_turn = behind[: behind.index(closing) + token.end()] if token else ""
        begin = self._begin_of_learnt(chat, text)
        spans = []
        for start, end in marks:
            if text.startswith(end_of_turn, end):
                end += len(end_of_turn)
            end = start + len(text[start:end].rstrip())
            if end > max(start, begin):
                spans.append((start, end))
        if 0 < len(spans) < len(chat.answers):
            raise UserError(
                f"the chat template's generation markers mark only {len(spans)} of the {len(chat.answers)} answers; "
                f"learn only the last answer of each row with --train_on=last, or {OTHER_TEMPLATE}"
            )
        if spans and not self._token.sub("", closing).strip():  # a template may close the conversation as well (Phi-3)
            spans[-1] = (spans[-1][0], len(text.rstrip()))
        return spans

    def _begin_of_learnt(self, chat: Chat, text: str) -> int:
        """Where the first answer to learn begins: behind every mark of an earlier turn."""
        first = chat.answers[0]
        if all(message["role"] != "assistant" for message in chat.messages[:first]):
            return 0
        return self._begin(chat, text, first)

    def _prefix_spans(self, chat: Chat, text: str) -> list[Span]:
        """The spans found by rendering the conversation up to each answer, without and with it."""
        spans: list[Span] = []
        for turn in chat.answers:
            start, end = self._begin(chat, text, turn), self._end(chat, text, turn)
            if end <= start or (spans and start < spans[-1][1]):
                raise UserError(
                    f"the chat template renders message {turn + 1}, an answer, to nothing; {OTHER_TEMPLATE}"
                )
            spans.append((start, end))
        return spans

    def _begin(self, chat: Chat, text: str, turn: int) -> int:
        asked = self.template.render(chat.messages[:turn], tools=chat.tools, generation_prompt=True)
        return _check_prefix(asked, text, turn, chat)

    def _end(self, chat: Chat, text: str, turn: int) -> int:
        """Where the answer ends. A template may close the conversation as well, by an eos token behind the turn's own
        end (Phi-3); where the eos token takes the place of another one (gpt-oss), the turn was rewritten.
        """
        if turn == chat.answers[-1]:
            return len(text.rstrip())
        answered = self.template.render(chat.messages[: turn + 1], tools=chat.tools).rstrip()
        unclosed = answered.removesuffix(self.eos).rstrip()
        if not text.startswith(answered) and unclosed.endswith(self._tokens):
            answered = unclosed
        return _check_prefix(answered, text, turn, chat)


def _check_prefix(prefix: str, text: str, turn: int, chat: Chat) -> int:
    """How long the prefix is, which must begin the text."""
    if text.startswith(prefix):
        return len(prefix)
    same = len([*takewhile(lambda pair: pair[0] == pair[1], zip(prefix, text, strict=False))])
    seen = slice(max(same - 10, 0), same + 30)  # with what leads up to the difference
    way_out = f"learn only the last answer of each row with --train_on=last, or {OTHER_TEMPLATE}"
    raise UserError(
        f"the chat template is not stable at message {turn + 1}: up to there it writes {prefix[seen]!r} "
        f"where the whole conversation has {text[seen]!r}, so what to learn cannot be told; "
        f"{way_out if len(chat.answers) > 1 else OTHER_TEMPLATE}"
    )
