"""The engine's plain generators on an event loop: every step runs in a worker thread, the loop is never blocked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


async def iterate(make: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T, None]:
    """The items of the generator that `make` gives.

    When the consumer stops (it is cancelled, or closes this generator), the engine's generator is closed after the
    step that is under way: decoding ends within one token.
    """
    items = await asyncio.to_thread(make)
    step: asyncio.Task[T] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, items, _END))
            item = await asyncio.shield(step)
            if item is _END:
                return
            yield item
    finally:
        if step is None or step.done():
            items.close()
        else:  # a running generator cannot be closed from outside
            step.add_done_callback(lambda done: _close(done, items))


def _close(step: asyncio.Task[Any], items: Generator[Any, None, None]) -> None:
    if not step.cancelled():
        step.exception()  # nobody waits for it any more
    items.close()
