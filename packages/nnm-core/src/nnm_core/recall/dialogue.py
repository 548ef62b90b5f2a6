"""A search as a dialogue: it says what it wants from the index and is given it.

So one piece of logic serves an index that answers at once and one that is awaited. Between two questions a search
computes (embeds, fuses, reads the journal); the questions of one step do not depend on each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from nnm_core.storage.index import AsyncVectorSearch, ScoredPoint

T = TypeVar("T")
_END: Any = object()


@dataclass(frozen=True)
class Ask:
    """One call of an index.

    Attributes:
        method: of `VectorIndex`, and of `AsyncVectorSearch`.
        query: the vector, or the token vectors.
        options: the keyword arguments: limit, filter, ids.
    """

    method: Literal["search_dense", "search_sparse", "rescore_tokens"]
    query: Any
    options: dict[str, Any]


Found = list[ScoredPoint]
Asking = Generator[Sequence[Ask], list[Found], T]


def answer_now(asking: Asking[T], index: Any) -> T:
    """Run a search on an index that answers at once (a `VectorIndex`, or what has those of its searches)."""
    found: list[Found] | None = None
    while True:
        try:
            asks = next(asking) if found is None else asking.send(found)
        except StopIteration as end:
            return cast(T, end.value)
        found = [getattr(index, ask.method)(ask.query, **ask.options) for ask in asks]


async def answer_awaited(asking: Asking[T], index: AsyncVectorSearch) -> T:
    """Run a search on an index that is awaited: its computing in worker threads, its questions on the event loop.

    No thread waits for the server, and the questions of one step are under way together.
    """
    found: list[Found] | None = None
    while True:
        asks, value = await asyncio.to_thread(_step, asking, found)
        if asks is _END:
            return cast(T, value)
        found = list(await asyncio.gather(*(getattr(index, ask.method)(ask.query, **ask.options) for ask in asks)))


def _step(asking: Asking[Any], found: list[Found] | None) -> tuple[Any, Any]:
    # StopIteration cannot cross into a coroutine.
    try:
        return (next(asking) if found is None else asking.send(found)), None
    except StopIteration as end:
        return _END, end.value
