"""A prompt -> the ids that a policy reads. Knows no formats, files or data sets.

They are the ids that supervised training reads before an answer: text as the tokenizer opens one (with a bos token
where it puts one), messages as the chat template writes them, opened for the answer.
"""

import warnings
from functools import cached_property
from typing import TYPE_CHECKING

from relax.data.chat.template import OTHER_TEMPLATE, ChatTemplate
from relax.data.chat.template_fit import check_nothing_left_out, in_a_form_that_fits
from relax.data.examples import Chat, Message, Prompt
from relax.data.formats.cells import check_unicode, shown
from relax.data.tokens.token_ids import Ids, TokenIds
from relax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM_ROLES = ("system", "developer")


class PromptWriter:
    """Writes prompts as texts and turns those into ids.

    Args:
        tokenizer: With a chat template, if there is a prompt to write with one.
        system_prompt: What a system turn before every prompt says; it makes a text prompt a user's turn.
        as_chat: A text prompt is a user's turn.

    Raises:
        UserError: Text prompts are to be turns, and the tokenizer has no chat template.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, system_prompt: str | None = None, as_chat: bool = False
    ) -> None:
        self.system_prompt, self.as_chat = system_prompt, as_chat or system_prompt is not None
        self._tokenizer, self._ids = tokenizer, TokenIds(tokenizer)
        if self.as_chat and tokenizer.chat_template is None:
            flag = "prompts_as_chat" if system_prompt is None else "system_prompt"
            raise UserError(f"--{flag} needs a chat template and the tokenizer has none; {OTHER_TEMPLATE}")

    def require(self, prompt: Prompt) -> None:
        """Refuse a tokenizer that cannot write such prompts: that is no row's fault, so no row is named.

        Raises:
            UserError: It has no chat template, or several without a default.
        """
        if self._is_chat(prompt):
            _ = self._template

    def write(self, prompt: Prompt) -> str:
        """The text to tokenize.

        Raises:
            UserError: The template fails on the messages or leaves something out; there are two system turns.
        """
        if self._is_chat(prompt):
            text = in_a_form_that_fits(self._messages(prompt), lambda messages: self._render(prompt, messages))
        else:
            assert isinstance(prompt.prompt, str), "messages are chat"
            text = prompt.prompt
        check_unicode([text])
        return text

    def tokenize(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, as it stands."""
        return self._ids.tokenize(texts)

    def finish(self, prompt: Prompt, ids: Ids) -> Ids:
        """The policy's input, from the ids of the text.

        Raises:
            UserError: The tokenizer has no token for anything in it.
        """
        if not ids:
            what = shown(prompt.prompt) if isinstance(prompt.prompt, str) else "its messages"
            raise UserError(f"the prompt is empty once tokenized: the tokenizer has no token for anything in {what}")
        opening = [] if self._is_chat(prompt) else self._ids.opening
        return ids if ids[: len(opening)] == opening else opening + ids

    def _is_chat(self, prompt: Prompt) -> bool:
        return self.as_chat or not isinstance(prompt.prompt, str)

    def _messages(self, prompt: Prompt) -> list[Message]:
        text = prompt.prompt
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        if self.system_prompt is None:
            return messages
        system = {"role": "system", "content": self.system_prompt}
        if messages[0]["role"] not in _SYSTEM_ROLES:
            return [system, *messages]
        if messages[0]["content"] != self.system_prompt:
            raise UserError(
                f"the prompt begins with a {messages[0]['role']} turn of its own, which says something else than "
                "--system_prompt; leave the flag or those turns out"
            )
        return messages

    def _render(self, prompt: Prompt, messages: list[Message]) -> str:
        text = self._template.render(messages, tools=prompt.tools, generation_prompt=True)
        check_nothing_left_out(self._template, Chat(messages, [], prompt.tools), text)
        return text

    @cached_property
    def _template(self) -> ChatTemplate:
        template = ChatTemplate(self._tokenizer)
        if "strftime_now" in template.source:
            warnings.warn(
                "the chat template writes today's date: a run that is resumed on another day reads other prompts and "
                "is refused; give a template without the date with --chat_template",
                stacklevel=2,
            )
        return template
