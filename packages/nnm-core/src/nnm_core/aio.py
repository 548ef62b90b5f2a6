"""The engine on an event loop: its plain calls and generators run in worker threads, so the loop is never blocked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


async def iterate(make: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
    """The items of the iterator that `make` gives, each step in a worker thread.

    Many of these take turns on the loop's thread pool. When a consumer stops (it is cancelled, or closes this
    generator), the iterator is closed after the step that is under way: decoding ends within one token.
    """
    items = await asyncio.to_thread(make)
    step: asyncio.Future[T] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, items, _END))
            item = await asyncio.shield(step)
            if item is _END:
                return
            yield item
    finally:
        if step is None or step.done():
            _close(items)
        else:  # a generator that is running in a thread cannot be closed from here
            step.add_done_callback(lambda done: _close_after(done, items))


def _close_after(step: asyncio.Future[Any], items: Iterator[Any]) -> None:
    if not step.cancelled():
        step.exception()  # nobody waits for it any more
    _close(items)


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
