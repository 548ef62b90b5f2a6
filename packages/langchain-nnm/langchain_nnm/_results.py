"""The engine's answers as LangChain's messages, with usage, receipt and times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_nnm._tools import CallFormat, Reply, parse_reply
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


def chat_result(model: str, answer: Answer, reply: Reply | None = None) -> ChatResult:
    """A finished answer; `reply` is what was made of its text where tools were offered."""
    reply = reply or Reply(answer.text)
    message = AIMessage(
        content=reply.text,
        tool_calls=list(reply.calls),
        invalid_tool_calls=list(reply.invalid),
        response_metadata=response_metadata(model, answer),
        usage_metadata=usage(answer.receipt),
    )
    info = {"finish_reason": answer.finish_reason}
    return ChatResult(
        generations=[ChatGeneration(message=message, generation_info=info)], llm_output={"model_name": model}
    )


def chat_chunks(
    model: str, pieces: Iterable[Chunk], style: CallFormat | None, forced: str
) -> Iterator[ChatGenerationChunk]:
    """The pieces of an answer; only the last one carries usage and metadata.

    Args:
        model: its name.
        pieces: from the engine.
        style: how calls of tools are written, if there are tools; text that may be a call is held back to the end.
        forced: what the answer was made to begin with.
    """
    text, sent = forced, 0
    for piece in pieces:
        text += piece.text
        if piece.answer is not None:
            reply = Reply(text) if style is None else parse_reply(text, style)
            yield _last_chunk(model, piece.answer, reply, sent)
        else:
            end = len(text) if style is None else style.safe_end(text)
            yield ChatGenerationChunk(message=AIMessageChunk(content=text[sent:end]))
            sent = max(sent, end)


def _last_chunk(model: str, answer: Answer, reply: Reply, sent: int) -> ChatGenerationChunk:
    calls = [(call["name"], json.dumps(call["args"]), call["id"]) for call in reply.calls]
    calls += [(call["name"] or "", call["args"] or "", call["id"]) for call in reply.invalid]
    message = AIMessageChunk(
        content=reply.text[sent:],
        tool_call_chunks=[
            tool_call_chunk(name=name, args=args, id=call_id, index=index)
            for index, (name, args, call_id) in enumerate(calls)
        ],
        response_metadata=response_metadata(model, answer),
        usage_metadata=usage(answer.receipt),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)
