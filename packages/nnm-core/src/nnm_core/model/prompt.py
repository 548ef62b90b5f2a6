"""Chat prompts as token segments: the template applied once, every memory tokenised by itself.

A prompt is cut at its memories: text | memory | text ... Each piece is tokenised alone, so a memory has the same
tokens wherever it stands, which is what makes its state reusable. Reading the prompt (`mode="read"`) uses the very
same tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from nnm_core.errors import InvalidInputError
from nnm_core.records import Memory, Message, Role

SEPARATOR = "\n\n"
CONTEXT_HEADER = "Context:\n"
QUESTION_HEADER = "Question: "
DEFAULT_SYSTEM = "You answer questions with a short factual answer."
# Private-use characters, which no template contains; where a text has them, they are treated as control tokens are.
_MARKER = "\ue000{}\ue001"
_MARKERS = re.compile("\ue000(\\d+)\ue001")
# Templates that print today's date would change the left context, and so every state, every day.
_TODAY = "26 Jul 2024"
_CLOCK = f"{{% macro strftime_now(format) %}}{_TODAY}{{% endmacro %}}"

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
        # Whether control tokens are recognised is a switch inside a fast tokenizer, and other threads may be using it
        # too: one copy for each position, never switched.
        self._tokenizer, self._literal = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
        self._thinking = thinking
        special = sorted((token for token in tokenizer.all_special_tokens if token), key=len, reverse=True)
        self._guard = re.compile("|".join([*(re.escape(token) for token in special), _MARKERS.pattern]))
        self._template = _default_template(tokenizer)
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
        if not messages:
            raise InvalidInputError("There are no messages.", hint="Ask something.")
        guarded: list[Part] = []
        turns = [(message.role, self._content(message.parts, guarded)) for message in messages]
        return self._cut(_MARKERS.split(self._render(turns, len(guarded))), guarded)

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
        segments = self._cut(pieces, memories)
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

    def memory_places(self, text: str) -> list[tuple[int, int]]:
        """For each token of a memory the characters [start, stop) of `text` that it stands for."""
        encoded = self._literal(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of rendered prompt text; control tokens of the template are recognised, none are added."""
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else ()

    def _literal_ids(self, text: str) -> tuple[int, ...]:
        encoded = self._literal(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return tuple(encoded["input_ids"])

    def _content(self, parts: Sequence[Part], guarded: list[Part]) -> str:
        """Message content in which memories, and text that imitates control tokens, stand as markers.

        What a marker stands for is appended to `guarded`; the marker holds its index there.
        """

        def mark(part: Part) -> str:
            guarded.append(part)
            return _MARKER.format(len(guarded) - 1)

        return "".join(
            mark(part) if isinstance(part, Memory) else self._guard.sub(lambda found: mark(found[0]), part)
            for part in parts
        )

    def _cut(self, pieces: Sequence[str], guarded: Sequence[Part]) -> list[Segment]:
        segments: list[Segment] = []
        pending: tuple[int, ...] = self.text_ids(pieces[0])
        for marker, following in zip(pieces[1::2], pieces[2::2], strict=True):
            part = guarded[int(marker)]
            if not isinstance(part, Memory):
                pending += self._literal_ids(part)
            else:
                segments += [Segment(pending), Segment(self.memory_ids(part.text), part)]
                if following.startswith(SEPARATOR):
                    following = following[len(SEPARATOR) :]
                else:
                    segments[-1] = Segment(self._literal_ids(part.text), part)
                pending = ()
            pending += self.text_ids(following)
        segments.append(Segment(pending))
        return [segment for segment in segments if segment.ids]

    def _render(self, turns: Sequence[tuple[Role, str]], markers: int) -> str:
        if not self._template:
            return self._render_plain(turns)
        problem = ""
        for attempt in (turns, _strict_order(turns)):
            try:
                rendered = self._apply(attempt)
            except TemplateError as error:
                problem = f"The chat template rejects these messages: {error}"
                continue
            if _keeps(rendered, attempt, markers):
                return rendered
            problem = "The chat template does not keep the content of every message."
        raise InvalidInputError(
            problem, hint="Use a template that prints each message once, or pass the prompt as one user message."
        )

    def _apply(self, turns: Sequence[tuple[Role, str]]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=self._template,
            enable_thinking=self._thinking,
            date_string=_TODAY,
        )
        return str(rendered)

    def _render_plain(self, turns: Sequence[tuple[Role, str]]) -> str:
        """For models without a template: turns one after the other, then a cue to answer."""
        body = SEPARATOR.join(content if role != "assistant" else f"Answer: {content}" for role, content in turns)
        return f"{self._start}{body}\nAnswer:"


def _default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, its clock stopped; empty if there is none."""
    if not tokenizer.chat_template:
        return ""
    template = str(tokenizer.get_chat_template())
    return _CLOCK + template if "strftime_now" in template else template


def _keeps(rendered: str, turns: Sequence[tuple[Role, str]], markers: int) -> bool:
    """Whether every marker is there once, and all text of users and systems (templates may drop past thoughts)."""
    found = sorted(int(index) for index in _MARKERS.findall(rendered))
    said = [content for role, content in turns if role in ("user", "system")]
    texts = [text.strip() for content in said for text in _MARKERS.split(content)[::2]]
    return found == list(range(markers)) and all(text in rendered for text in texts)


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
