"""Memories in a chat prompt: in place of their own text where it stands, else in front of the last question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nnm_core.errors import InvalidInputError
from nnm_core.model.prompt import CONTEXT_HEADER, QUESTION_HEADER, SEPARATOR, Part, PromptMessage, from_messages
from nnm_core.recall.leases import LeaseBook
from nnm_core.records import Memory, Message


@dataclass(frozen=True)
class ChatPrompt:
    """A chat prompt with its memories.

    Attributes:
        messages: the turns, memories in their places.
        memories: those that stand in it, each once.
        missed: memories that were recalled since the scope's last prompt, if none of the recalled ones stands in it.
    """

    messages: list[PromptMessage]
    memories: tuple[Memory, ...]
    missed: tuple[Memory, ...] = ()


def bare_prompt(messages: Sequence[Message]) -> ChatPrompt:
    """The messages as they are: no memory is looked for."""
    return ChatPrompt(from_messages(_checked(messages)), ())


def chat_prompt(
    messages: Sequence[Message],
    leases: LeaseBook,
    *,
    scope: str = "",
    given: Sequence[Memory] = (),
    references: Sequence[Memory] = (),
    system: str | None = None,
) -> ChatPrompt:
    """Put memories where their text stands.

    Args:
        messages: the turns.
        leases: which memories may be looked for.
        scope: whose leases count.
        given: memories that must be in the prompt; those whose text does not stand in it are put, in this order, in
            front of the last user turn, in NNM's own layout.
        references: memories that may be looked for in this prompt, beside the leased ones.
        system: the system turn of NNM's own layout, for prompts that `given` had to be put into and that have none.

    Raises:
        InvalidInputError: no messages.
    """
    also = (*given, *references)
    turns = [
        PromptMessage(message.role, leases.find(message.content, scope=scope, also=also))
        for message in _checked(messages)
    ]
    found = _memories(part for turn in turns for part in turn.parts)
    missed = leases.settle(found, scope=scope)
    absent = [memory for memory in given if memory.id not in {m.id for m in found}]
    if absent:
        turns = _insert(turns, absent)
        if system and all(turn.role != "system" for turn in turns):
            turns = [PromptMessage("system", (system,)), *turns]
        found = _memories(part for turn in turns for part in turn.parts)
    return ChatPrompt(turns, found, () if found else missed)


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if not messages:
        raise InvalidInputError("The chat prompt has no messages.")
    return messages


def _insert(turns: Sequence[PromptMessage], memories: Sequence[Memory]) -> list[PromptMessage]:
    context: list[Part] = [CONTEXT_HEADER]
    for memory in memories:
        context += [memory, SEPARATOR]
    asked = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if not asked:
        return [*turns, PromptMessage("user", tuple(context))]
    last = asked[-1]
    question = PromptMessage("user", (*context, QUESTION_HEADER, *turns[last].parts))
    return [*turns[:last], question, *turns[last + 1 :]]


def _memories(parts: Iterable[Part]) -> tuple[Memory, ...]:
    return tuple({part.id: part for part in parts if isinstance(part, Memory)}.values())
