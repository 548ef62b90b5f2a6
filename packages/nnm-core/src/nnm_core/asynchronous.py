"""The engine on an event loop: a server's index is awaited, reading with the model runs in worker threads."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from nnm_core.collection import Collection
from nnm_core.recall.dialogue import Asking, answer_awaited
from nnm_core.records import Hit, Memory

T = TypeVar("T")


class AsyncFace:
    """What an open engine can do on an event loop, without blocking it.

    Searches of a Qdrant server go through its asynchronous client: no thread waits for the network. An embedded index,
    the model and the journal compute or read the disk, so they run in the loop's worker threads; there is no awaiting
    them. Writing is one at a time in a namespace: it has one thread of its own, and what waits for its turn takes no
    thread from searches and answers.

    Answers are streamed with ``nnm_core.aio.iterate(lambda: nnm.stream(...))``.
    """

    _collection: Collection
    search: Callable[..., list[Hit]]
    add: Callable[..., list[Memory]]
    delete: Callable[[str | Iterable[str]], int]
    forget: Callable[[str | Iterable[str]], int]
    _searching: Callable[..., Asking[list[Hit]]]

    async def asearch(self, query: str = "", k: int = 4, filter: Any = None, **options: Any) -> list[Hit]:
        """As `search`, with the same options."""
        index = self._collection.index.awaited()
        if index is None:
            return await asyncio.to_thread(self.search, query, k, filter, **options)
        return await answer_awaited(self._searching(query, k, filter, **options), index)

    async def aadd(
        self, texts: str | Sequence[str], ids: Any = None, metadatas: Any = None, **options: Any
    ) -> list[Memory]:
        """As `add`, with the same options. Once begun it is finished, also if the waiting task is cancelled."""
        return await self._write(lambda: self.add(texts, ids, metadatas, **options))

    async def adelete(self, ids: str | Iterable[str]) -> int:
        """As `delete`."""
        return await self._write(lambda: self.delete(ids))

    async def aforget(self, ids: str | Iterable[str]) -> int:
        """As `forget`."""
        return await self._write(lambda: self.forget(ids))

    @cached_property
    def _writer(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="nnm-write")

    def _end_writer(self) -> None:
        """Finish the write under way and give up those that wait for their turn."""
        self._writer.shutdown(cancel_futures=True)

    async def _write(self, call: Callable[[], T]) -> T:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._writer, context.run, call)
