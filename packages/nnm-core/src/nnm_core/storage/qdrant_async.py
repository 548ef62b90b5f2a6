"""Searches of a Qdrant server on an event loop, through qdrant-client's asynchronous client."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qdrant_client import AsyncQdrantClient, models

from nnm_core.storage.filter_translation import translate
from nnm_core.storage.filters import Filter
from nnm_core.storage.index import (
    Array,
    ScoredPoint,
    SparseVector,
    check_dense,
    check_id,
    check_limit,
    check_tokens,
    ranked,
    scan,
)
from nnm_core.storage.qdrant_filters import QdrantDialect
from nnm_core.storage.qdrant_support import PAGE, encode_sparse, is_local, search_params, server_errors

_Loop = asyncio.AbstractEventLoop


class AsyncQdrantSearch:
    """`AsyncVectorSearch` in one collection.

    An HTTP connection belongs to the event loop that opened it, so each loop gets a client of its own, on first use.

    Args:
        make: makes a client.
        name: of the collection.
        dim: of the dense vectors.
        token_dim: of the token vectors, or None for none.
    """

    def __init__(
        self, make: Callable[[], AsyncQdrantClient], name: str, *, dim: int, token_dim: int | None = None
    ) -> None:
        self._make, self._name = make, name
        self._dim, self._token_dim = dim, token_dim
        self._clients: weakref.WeakKeyDictionary[_Loop, AsyncQdrantClient] = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Let every loop that still runs close its connections; those of a loop that has ended are gone with it."""
        clients, self._clients = dict(self._clients), weakref.WeakKeyDictionary()
        for loop, client in clients.items():
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(client.close(), loop)

    async def search_dense(self, vector: Array, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """See `AsyncVectorSearch`."""
        query = check_dense(vector, self._dim).tolist()
        return await self._query(query, "dense", limit, await self._translate(filter))

    async def search_sparse(
        self, vector: SparseVector, *, limit: int, filter: Filter | None = None
    ) -> list[ScoredPoint]:
        """See `AsyncVectorSearch`."""
        check_limit(limit)
        if not len(vector):
            return []
        return await self._query(encode_sparse(vector), "sparse", limit, await self._translate(filter))

    async def rescore_tokens(self, vectors: Array, ids: Sequence[str], *, limit: int) -> list[ScoredPoint]:
        """See `AsyncVectorSearch`."""
        query = check_tokens(vectors, self._token_dim).tolist()
        only = models.Filter(must=[QdrantDialect().points([check_id(point_id) for point_id in ids])])
        return await self._query(query, "tokens", limit, only)

    async def _query(self, query: Any, using: str, limit: int, condition: models.Filter | None) -> list[ScoredPoint]:
        check_limit(limit)
        with self._use() as client:
            found = await client.query_points(
                self._name,
                query,
                using=using,
                limit=limit,
                query_filter=condition,
                search_params=search_params(limit, local=is_local(client.init_options)),
                with_payload=False,
            )
        return ranked(ScoredPoint(str(hit.id), hit.score) for hit in found.points)

    async def _translate(self, condition: Filter | None) -> models.Filter | None:
        """As for the plain index. What Qdrant cannot say is looked up first, since a translation cannot wait."""
        if condition is None:
            return None
        unsaid: list[Filter] = []

        def note(part: Filter) -> Collection[str]:
            unsaid.append(part)
            return []

        translated: models.Filter = translate(condition, QdrantDialect(), note)
        if unsaid:
            payloads = [item async for item in self._scroll()]
            found = iter([await asyncio.to_thread(scan, payloads, part) for part in unsaid])
            translated = translate(condition, QdrantDialect(), lambda _: next(found))
        return translated

    async def _scroll(self) -> Any:
        offset: Any = None
        while True:
            with self._use() as client:
                records, offset = await client.scroll(
                    self._name, limit=PAGE, offset=offset, with_payload=True, with_vectors=False
                )
            for record in records:
                payload: Mapping[str, Any] = record.payload or {}
                yield str(record.id), payload
            if offset is None:
                return

    @contextmanager
    def _use(self) -> Iterator[AsyncQdrantClient]:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = self._make()
        with server_errors(self._name):
            yield self._clients[loop]
