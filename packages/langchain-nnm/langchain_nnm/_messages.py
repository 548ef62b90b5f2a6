"""LangChain's messages as the engine's: text, one system turn in front, no two turns of one role in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from nnm_core import InvalidInputError, Memory, Message
from nnm_core.records import Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# Blocks of an assistant's message that are not part of what it said; tool calls come in `tool_calls` as well.
_UNSAID = frozenset({"reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "tool_call_chunk"})
_GLUE = "\n\n"


def to_engine(messages: Sequence[BaseMessage], *, knows_tools: bool = True) -> list[Message]:
    """The prompt in a form that every chat template takes.

    System messages are put in front, in their order; runs of one role become one turn.

    Args:
        messages: of any roles in any order.
        knows_tools: the model knows turns of tools; otherwise their results become context of the question before
            them, in the layout that readers know.

    Raises:
        InvalidInputError: a message has content that is not text, or there is none.
    """
    turns = [Message(role_of(message), text_of(message)) for message in messages]
    if not knows_tools:
        turns = _without_tools(turns)
    system = [turn.content for turn in turns if turn.role == "system"]
    merged = [Message("system", _GLUE.join(system))] if system else []
    for turn in turns:
        if turn.role == "system":
            continue
        if merged and merged[-1].role == turn.role and turn.role != "tool":
            merged[-1] = Message(turn.role, f"{merged[-1].content}{_GLUE}{turn.content}")
        else:
            merged.append(turn)
    if not merged:
        raise InvalidInputError("The prompt has no messages.")
    return merged


def _without_tools(turns: Sequence[Message]) -> list[Message]:
    """Results of tools in front of the question that they were asked for; turns that only called tools are left out."""
    kept: list[Message] = []
    results: dict[int, list[str]] = {}
    for turn in turns:
        if turn.role == "tool":
            asked = max((index for index, before in enumerate(kept) if before.role == "user"), default=-1)
            results.setdefault(asked, []).append(turn.content)
        elif turn.role != "assistant" or turn.content:
            kept.append(turn)
    for index, texts in results.items():
        context = f"Context:\n{_GLUE.join(texts)}"
        if index < 0:
            kept.append(Message("user", context))
        else:
            kept[index] = Message("user", f"{context}{_GLUE}Question: {kept[index].content}")
    return kept


def text_of(message: BaseMessage) -> str:
    """The text of a message.

    Raises:
        InvalidInputError: it holds an image, a sound or anything else that would be lost.
    """
    if isinstance(message.content, str):
        return message.content
    return "".join(_block_text(block, message) for block in message.content)


def _block_text(block: str | dict[Any, Any], message: BaseMessage) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block.get("text"), str):
        return str(block["text"])
    kind = block.get("type")
    if isinstance(message, AIMessage) and kind in _UNSAID:
        return ""
    if kind == "json":
        return str(block.get("json"))
    raise InvalidInputError(
        f"A {message.type} message holds a block of type {kind!r}; this model reads text.",
        hint="Turn it into text before it reaches the model.",
    )


def role_of(message: BaseMessage) -> Role:
    """The role of a message in chat templates."""
    name = message.role if isinstance(message, ChatMessage) else message.type
    return _ROLES.get(name.removesuffix("MessageChunk").lower(), "user")


def referenced(nnm: Any, messages: Iterable[BaseMessage]) -> list[Memory]:
    """Memories that the artifacts of tool messages name: documents with the id and the text of a live memory.

    An artifact comes from the application, not from the prompt. Still it is only believed where both agree, and it
    only says what to look for: a memory whose text does not stand in the prompt is not put there.
    """
    documents = [document for message in messages for document in _artifacts(message) if document.id]
    by_id = {memory.id: memory for memory in nnm.get([str(document.id) for document in documents], missing="skip")}
    return [
        by_id[str(document.id)]
        for document in documents
        if str(document.id) in by_id and by_id[str(document.id)].text.split() == document.page_content.split()
    ]


def _artifacts(message: BaseMessage) -> list[Document]:
    if not isinstance(message, ToolMessage) or message.artifact is None:
        return []
    items = message.artifact if isinstance(message.artifact, list | tuple) else [message.artifact]
    return [item for item in items if isinstance(item, Document)]
