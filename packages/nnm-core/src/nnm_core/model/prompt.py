"""Chat prompts as token segments: the template applied once, every memory tokenised by itself.

A prompt is cut at its memories: text | memory | text ... Each piece is tokenised alone, so a memory has the same
tokens wherever it stands, which is what makes its state reusable. Reading the prompt (`mode="read"`) uses the very
same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from nnm_core.errors import InvalidInputError
from nnm_core.records import Memory, Message, Role

SEPARATOR = "\n\n"
CONTEXT_HEADER = "Context:\n"
QUESTION_HEADER = "Question: "
DEFAULT_SYSTEM = "You answer questions with a short factual answer."
# Private-use characters, so that no text and no template contains the marker by accident.
_MARKER = "\ue000{}\ue001"
_MARKERS = re.compile("\ue000(\\d+)\ue001")

Part = str | Memory


@dataclass(frozen=True)
class PromptMessage:
    """One turn whose content may hold memories among text."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Segment:
    """A run of prompt tokens: plain text, or one memory (its text and the separator behind it)."""

    ids: tuple[int, ...]
    memory: Memory | None = None


def question_prompt(question: str, memories: Sequence[Memory], system: str | None) -> list[PromptMessage]:
    """NNM's own layout: memories in the user turn, most relevant first, the question behind them."""
    parts: list[Part] = []
    if memories:
        parts.append(CONTEXT_HEADER)
        for memory in memories:
            parts += [memory, SEPARATOR]
    parts.append(QUESTION_HEADER + question)
    messages = [PromptMessage("user", tuple(parts))]
    return [PromptMessage("system", (system,)), *messages] if system else messages


def from_messages(messages: Iterable[Message]) -> list[PromptMessage]:
    """Ordinary chat messages without memories."""
    return [PromptMessage(message.role, (message.content,)) for message in messages]


class PromptFormat:
    """Renders messages with one tokenizer's template and cuts them into token segments."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, thinking: bool = False) -> None:
        """Args: thinking: passed to templates that have such a switch; off keeps answers short."""
        self._tokenizer = tokenizer
        self._thinking = thinking
        self._special = [re.escape(token) for token in tokenizer.all_special_tokens if token]
        self._separator = self.text_ids(SEPARATOR)
        # The beginning-of-text token of tokenizers that put one in front of every text.
        bos = tokenizer.bos_token
        puts_one = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._start = str(bos) if puts_one else ""

    def segments(self, messages: Sequence[PromptMessage]) -> list[Segment]:
        """The whole prompt, generation prompt included, as token segments without empty ones.

        Raises:
            InvalidInputError: the template rejects the messages or drops their content.
        """
        if any(message.role == "prompt" for message in messages):
            return self._formatted(messages)
        memories: list[Memory] = []
        guarded: list[str] = []
        turns = [(message.role, self._content(message.parts, memories, guarded)) for message in messages]
        pieces = _MARKERS.split(self._render(turns))
        if sorted(int(index) for index in pieces[1::2]) != list(range(len(guarded))):
            raise InvalidInputError(
                "The chat template does not keep the content of every message.",
                hint="Use a template that prints each message once, or pass the prompt as one user message.",
            )
        return self._cut(pieces, memories, guarded)

    def _formatted(self, messages: Sequence[PromptMessage]) -> list[Segment]:
        """A prompt that is formatted already: its control tokens count, those in memories stay text."""
        if len(messages) > 1:
            raise InvalidInputError(
                "A formatted prompt must be the only message.",
                hint="Memories must stand in it already; pass messages to have them put in.",
            )
        memories = [part for part in messages[0].parts if isinstance(part, Memory)]
        pieces = [""]
        for part in messages[0].parts:
            if isinstance(part, Memory):
                pieces += [str(len(pieces) // 2), ""]
            else:
                pieces[-1] += part
        if not pieces[0].startswith(self._start):
            pieces[0] = self._start + pieces[0]
        segments = self._cut(pieces, memories, [""] * len(memories))
        if not segments:
            raise InvalidInputError("The prompt is empty.", hint="Ask something.")
        return segments

    def left_context(self, system: str | None) -> tuple[int, ...]:
        """The canonical left context: the tokens before the first memory in NNM's own layout."""
        probe = Memory(id="probe", text="probe")
        segments = self.segments(question_prompt("probe", [probe], system))
        before = next(index for index, segment in enumerate(segments) if segment.memory is not None)
        return tuple(token for segment in segments[:before] for token in segment.ids)

    def memory_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a memory and the separator behind it; strings that look like control tokens stay text."""
        return (*self._literal_ids(text), *self._separator)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of rendered prompt text; control tokens of the template are recognised, none are added."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _literal_ids(self, text: str) -> tuple[int, ...]:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(encoded["input_ids"])

    def _content(self, parts: Sequence[Part], memories: list[Memory], guarded: list[str]) -> str:
        """Message content with memories, and text that imitates control tokens, replaced by markers.

        `guarded` gets one entry a marker: the text, or "" for the next entry of `memories`.
        """
        out = []
        for part in parts:
            if isinstance(part, Memory):
                memories.append(part)
                guarded.append("")
                out.append(_MARKER.format(len(guarded) - 1))
                continue
            for piece in re.split(f"({'|'.join(self._special)})", part) if self._special else [part]:
                if piece and re.fullmatch("|".join(self._special) or r"(?!)", piece):
                    guarded.append(piece)
                    piece = _MARKER.format(len(guarded) - 1)
                out.append(piece)
        return "".join(out)

    def _cut(self, pieces: Sequence[str], memories: Sequence[Memory], guarded: Sequence[str]) -> list[Segment]:
        segments: list[Segment] = []
        waiting = iter(memories)
        pending: tuple[int, ...] = self.text_ids(pieces[0])
        for marker, following in zip(pieces[1::2], pieces[2::2], strict=True):
            literal = guarded[int(marker)]
            if literal:
                pending += self._literal_ids(literal)
            else:
                memory = next(waiting)
                segments += [Segment(pending), Segment(self.memory_ids(memory.text), memory)]
                if following.startswith(SEPARATOR):
                    following = following[len(SEPARATOR) :]
                else:
                    segments[-1] = Segment(self._literal_ids(memory.text), memory)
                pending = ()
            pending += self.text_ids(following)
        segments.append(Segment(pending))
        return [segment for segment in segments if segment.ids]

    def _render(self, turns: Sequence[tuple[Role, str]]) -> str:
        if self._tokenizer.chat_template is None:
            return self._render_plain(turns)
        try:
            return self._apply(turns)
        except TemplateError:
            return self._apply(_strict_order(turns))

    def _apply(self, turns: Sequence[tuple[Role, str]]) -> str:
        # `date_string` keeps templates that print today's date from changing the left context every day.
        options: dict[str, Any] = {"enable_thinking": self._thinking, "date_string": "26 Jul 2024"}
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except TemplateError as error:
            if turns == _strict_order(turns):
                raise InvalidInputError(f"The chat template rejects these messages: {error}") from error
            raise
        return str(rendered)

    def _render_plain(self, turns: Sequence[tuple[Role, str]]) -> str:
        """For models without a template: turns one after the other, then a cue to answer."""
        body = SEPARATOR.join(content if role != "assistant" else f"Answer: {content}" for role, content in turns)
        return f"{self._start}{body}\nAnswer:"


def _strict_order(turns: Sequence[tuple[Role, str]]) -> list[tuple[Role, str]]:
    """System text folded into the first user turn and runs of one role merged, as strict templates want it."""
    merged: list[tuple[Role, str]] = []
    for role, content in turns:
        known: Role = "assistant" if role == "assistant" else "user"
        if merged and merged[-1][0] == known:
            merged[-1] = (known, f"{merged[-1][1]}{SEPARATOR}{content}")
        else:
            merged.append((known, content))
    return merged
