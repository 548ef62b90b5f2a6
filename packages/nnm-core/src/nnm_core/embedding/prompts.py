"""The compression prompt of KV-Embedding: how a text becomes the token rows whose states are pooled.

Source: Tang & Yang, "KV-Embedding" (arXiv 2601.01046): ``Context: {text}`` followed by ``Compress the Context in one
word:`` for memories and the same with ``Query`` for queries (PromptEOL's "in one word" idea). Every row is laid out as

    prefix ids | text ids of one window | suffix ids

and the three parts are tokenised apart, so that a text can never spill into the instruction and the text's own
special-token strings stay plain text. A text that does not fit is split into windows of nearly equal length; none of
its tokens is dropped. The vectors of the windows are averaged, weighted by their number of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nnm_core.errors import ContextOverflowError, InvalidInputError

EmbeddingRole = Literal["context", "query"]
PromptStyle = Literal["plain", "chat", "bare"]

_MARK = "\u2060nnm\u2060"  # word joiners: stands for the text while a chat template is rendered


@dataclass(frozen=True, slots=True)
class Window:
    """One token row of one text.

    Attributes:
        text: the index of the text in the caller's list.
        ids: prefix, text and suffix token ids.
        start: the first position of the text's tokens in `ids`.
        stop: one past their last position.
    """

    text: int
    ids: tuple[int, ...]
    start: int
    stop: int

    @property
    def weight(self) -> int:
        """The number of text tokens: the window's share in the average of its text."""
        return max(self.stop - self.start, 1)


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """The fixed token ids around a text.

    Attributes:
        prefix: ids before the text, beginning-of-text token included.
        suffix: ids after the text; the last one is the token whose key and value are re-routed.
        lead: what is put in front of the text before it is tokenised (a blank after ``Context:``).
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    lead: str = ""


class EmbeddingPrompt:
    """Builds the token rows for one tokenizer, one style and both roles.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        style: ``plain`` writes the instruction as running text behind the beginning-of-text token; ``chat`` puts it
            into a user turn of the tokenizer's chat template and ends behind the generation prompt; ``bare`` is the
            text alone (for ablations).

    Raises:
        InvalidInputError: ``chat`` was asked of a tokenizer without a chat template.
    """

    def __init__(self, tokenizer: Any, style: PromptStyle = "plain") -> None:
        if style == "chat" and not getattr(tokenizer, "chat_template", None):
            raise InvalidInputError(
                "This tokenizer has no chat template.", hint='Use EmbeddingSettings(prompt="plain").'
            )
        self._tokenizer = tokenizer
        # `split_special_tokens` is a switch inside a fast tokenizer that other threads share: a copy of its own.
        self._literal = copy.deepcopy(tokenizer)
        self._adds_blank = _adds_blank(tokenizer)
        self.style = style
        self._layouts: dict[EmbeddingRole, PromptLayout] = {
            "context": self._layout("Context"),
            "query": self._layout("Query"),
        }

    def layout(self, role: EmbeddingRole) -> PromptLayout:
        """The fixed ids of a role.

        Raises:
            InvalidInputError: the role is neither ``context`` nor ``query``.
        """
        if role not in self._layouts:
            raise InvalidInputError(f"Unknown role {role!r}.", hint='Use "context" or "query".')
        return self._layouts[role]

    def windows(self, texts: Sequence[str], role: EmbeddingRole, *, window: int) -> list[Window]:
        """The token rows of all texts, in order; at least one a text, each at most `window` tokens long.

        Raises:
            ContextOverflowError: the instruction alone fills the window.
        """
        layout = self.layout(role)
        room = window - len(layout.prefix) - len(layout.suffix)
        if room < 1:
            raise ContextOverflowError(
                f"The embedding prompt takes {window - room} tokens, the window has {window}.",
                hint="Raise EmbeddingSettings.window or use a model with a longer context.",
            )
        rows: list[Window] = []
        for index, ids in enumerate(self._text_ids(texts, layout.lead)):
            for part in _split(ids, room):
                row = (*layout.prefix, *part, *layout.suffix)
                if not row:
                    row = (self._filler(),)
                rows.append(Window(index, row, len(layout.prefix), len(layout.prefix) + len(part)))
        return rows

    def _text_ids(self, texts: Sequence[str], lead: str) -> list[list[int]]:
        if not texts:
            return []
        lead = "" if self._adds_blank else lead
        encoded = self._literal(
            [lead + text.strip() for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def _layout(self, name: str) -> PromptLayout:
        if self.style == "bare":
            return PromptLayout(_begin(self._tokenizer), ())
        before, after = f"{name}:", f"\nCompress the {name} in one word:"
        if self.style == "plain":
            return PromptLayout((*_begin(self._tokenizer), *self._ids(before)), self._ids(after), " ")
        rendered: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{before} {_MARK}{after}"}], tokenize=False, add_generation_prompt=True
        )
        head, found, tail = rendered.partition(_MARK)
        if not found:
            raise InvalidInputError(
                "The chat template does not repeat the user's message.", hint='Use EmbeddingSettings(prompt="plain").'
            )
        return PromptLayout(self._ids(head.rstrip(" ")), self._ids(tail), " ")

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _filler(self) -> int:
        """A token for an empty row: only the bare style without a beginning-of-text token can make one."""
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(self._tokenizer, name, None)
            if token is not None:
                return int(token)
        return 0


def _begin(tokenizer: Any) -> tuple[int, ...]:
    """The beginning-of-text token when there is one: attention needs a first token that is not content."""
    token = getattr(tokenizer, "bos_token_id", None)
    return () if token is None else (int(token),)


def _adds_blank(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts a blank before a text (SentencePiece's dummy prefix)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    blank = tokenizer(" a", add_special_tokens=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(plain)
    return plain == blank or bool(tokens and str(tokens[0]).startswith("\u2581"))


def _split(ids: list[int], room: int) -> list[list[int]]:
    """Cut into the fewest windows of at most `room` tokens, of nearly equal length; one empty window for no tokens."""
    count = max(1, -(-len(ids) // room))
    size, extra = divmod(len(ids), count)
    parts: list[list[int]] = []
    start = 0
    for index in range(count):
        stop = start + size + (index < extra)
        parts.append(ids[start:stop])
        start = stop
    return parts
