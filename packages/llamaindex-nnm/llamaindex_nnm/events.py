"""What NNM adds to LlamaIndex's traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from llama_index.core.instrumentation.events import BaseEvent

from nnm_core import Receipt


class NNMReceiptEvent(BaseEvent):
    """Dispatched at the end of every answer: how much was injected, how much was read, and why.

    It holds counts and ids, no text, no vectors, no tensors.
    """

    tier: str
    tokens_injected: int
    tokens_read: int
    tokens_generated: int
    seconds_to_first_token: float
    seconds_total: float
    fingerprint: str
    memories: Mapping[str, str]
    fallbacks: tuple[str, ...]

    @classmethod
    def class_name(cls) -> str:
        """Stable name of the event."""
        return "NNMReceiptEvent"

    @classmethod
    def of(cls, receipt: Receipt, *, span_id: str | None = None) -> NNMReceiptEvent:
        """The event of a receipt, under the span of the call that it belongs to."""
        return cls(
            span_id=span_id,
            tier=receipt.tier,
            tokens_injected=receipt.tokens_injected,
            tokens_read=receipt.tokens_read,
            tokens_generated=receipt.tokens_generated,
            seconds_to_first_token=receipt.seconds_to_first_token,
            seconds_total=receipt.seconds_total,
            fingerprint=receipt.fingerprint,
            memories=dict(receipt.memories),
            fallbacks=receipt.fallbacks,
        )


_RECEIPTS: ContextVar[list[NNMReceiptEvent] | None] = ContextVar("nnm_receipts", default=None)


@contextmanager
def receipts() -> Iterator[list[NNMReceiptEvent]]:
    """Collect the receipts of all LLM calls that begin inside the block, whatever engine makes them.

    ``with receipts() as taken: query_engine.query(...)``; then ``taken[-1].memories`` says what was injected.
    """
    taken: list[NNMReceiptEvent] = []
    token = _RECEIPTS.set(taken)
    try:
        yield taken
    finally:
        _RECEIPTS.reset(token)


def current_receipts() -> list[NNMReceiptEvent] | None:
    """Where the receipts of a call that begins now are collected, if anywhere."""
    return _RECEIPTS.get()
