"""The engine's answers as LangChain's messages, with usage, receipt and times."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from nnm_core import Answer, Chunk, Receipt


def usage(receipt: Receipt) -> UsageMetadata:
    """Token counts; injected tokens count as read from a cache."""
    prompt = receipt.tokens_injected + receipt.tokens_read
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=receipt.tokens_generated,
        total_tokens=prompt + receipt.tokens_generated,
        input_token_details=InputTokenDetails(cache_read=receipt.tokens_injected),
    )


def response_metadata(model: str, answer: Answer) -> dict[str, Any]:
    """What is known about the answer; ``nnm`` holds the whole receipt in plain values."""
    receipt = asdict(answer.receipt)
    receipt["fallbacks"] = list(receipt["fallbacks"])
    receipt["memories"] = dict(receipt["memories"])
    return {
        "model_name": model,
        "finish_reason": answer.finish_reason,
        "seconds_to_first_token": answer.receipt.seconds_to_first_token,
        "nnm": receipt,
    }


def chat_result(model: str, answer: Answer) -> ChatResult:
    """A finished answer."""
    metadata = response_metadata(model, answer)
    message = AIMessage(content=answer.text, response_metadata=metadata, usage_metadata=usage(answer.receipt))
    info = {"finish_reason": answer.finish_reason}
    return ChatResult(
        generations=[ChatGeneration(message=message, generation_info=info)], llm_output={"model_name": model}
    )


def chat_chunk(model: str, chunk: Chunk) -> ChatGenerationChunk:
    """A piece of an answer; only the last one carries usage and metadata."""
    if chunk.answer is None:
        return ChatGenerationChunk(message=AIMessageChunk(content=chunk.text))
    message = AIMessageChunk(
        content=chunk.text,
        response_metadata=response_metadata(model, chunk.answer),
        usage_metadata=usage(chunk.answer.receipt),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)
