"""Responses of LlamaIndex made of the engine's chunks: text, token counts and the receipt, no tensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

from nnm_core import Answer, Chunk, Receipt


def chat_response(text: str, chunk: Chunk, *, streaming: bool = False) -> ChatResponse:
    """The answer so far as a chat response; counts and receipt come with the last chunk."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=text),
        delta=chunk.text if streaming else None,
        **_details(chunk.answer),
    )


def completion_response(text: str, chunk: Chunk, *, streaming: bool = False) -> CompletionResponse:
    """The answer so far as a completion; counts and receipt come with the last chunk."""
    return CompletionResponse(text=text, delta=chunk.text if streaming else None, **_details(chunk.answer))


def _details(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    counts = usage(answer.receipt)
    raw = {
        "usage": counts,
        "finish_reason": answer.finish_reason,
        "nnm": {**asdict(answer.receipt), "memories": dict(answer.receipt.memories)},
    }
    flat = {name: counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return {"raw": raw, "additional_kwargs": flat}


def usage(receipt: Receipt) -> dict[str, Any]:
    """Token counts under the names that trackers look for; injected tokens count as cached prompt tokens."""
    prompt = receipt.tokens_injected + receipt.tokens_read
    return {
        "prompt_tokens": prompt,
        "completion_tokens": receipt.tokens_generated,
        "total_tokens": prompt + receipt.tokens_generated,
        "prompt_tokens_details": {"cached_tokens": receipt.tokens_injected},
    }
