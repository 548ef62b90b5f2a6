"""Between LlamaIndex's chat messages and the engine's."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from nnm_core import InvalidInputError, Message
from nnm_core.records import Role

ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def to_engine(messages: Sequence[ChatMessage]) -> list[Message]:
    """The engine's messages, text alone.

    Raises:
        InvalidInputError: a message holds a block that is not text; it would be lost silently otherwise.
    """
    return [Message(ROLES[message.role], _text(message)) for message in messages]


def _text(message: ChatMessage) -> str:
    texts = []
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise InvalidInputError(
                f"A {message.role.value} message holds a {type(block).__name__}; NNM reads text.",
                hint="Turn it into text before it reaches the LLM.",
            )
        texts.append(block.text)
    return "\n".join(texts)
