"""The index on a Qdrant server, or in RAM through qdrant-client's local mode: one collection per namespace."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from nnm_core.errors import EngineClosedError, InvalidInputError, StorageError, StoreMismatchError
from nnm_core.storage.filter_translation import translate
from nnm_core.storage.filters import Filter
from nnm_core.storage.index import (
    Array,
    Point,
    ScoredPoint,
    SparseVector,
    check_dense,
    check_id,
    check_limit,
    check_tokens,
    checked,
    ranked,
    scan,
)
from nnm_core.storage.qdrant_async import AsyncQdrantSearch
from nnm_core.storage.qdrant_filters import QdrantDialect
from nnm_core.storage.qdrant_support import PAGE, encode_sparse, is_local, search_params, server_errors

KEY_VARIABLE = "QDRANT_API_KEY"


def make_client(url: str | None, *, api_key: str | None = None) -> QdrantClient:
    """A client for a server, or with None one that keeps everything in RAM.

    Args:
        api_key: of the server; None takes what stands in the environment under `KEY_VARIABLE`, if anything does.

    Raises:
        StorageError: the address makes no sense.
        InvalidInputError: no such key can be sent.
    """
    if url is None:
        return QdrantClient(":memory:")
    key = _key(api_key)
    try:
        return QdrantClient(url=url, api_key=key)
    except ValueError as error:
        raise StorageError(f"{url!r} is not the address of a Qdrant server: {error}.") from error


def make_async_client(url: str, *, api_key: str | None = None) -> AsyncQdrantClient:
    """As `make_client`, for the event loop that runs; the address has been checked by `make_client`."""
    return AsyncQdrantClient(url=url, api_key=_key(api_key), check_compatibility=False)  # the plain client has checked


def _key(given: str | None) -> str | None:
    """The key that is sent. HTTP's own complaint about a bad one would show it."""
    key = (os.environ.get(KEY_VARIABLE, "") if given is None else given).strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidInputError(
            "The API key of the Qdrant server has characters that cannot be sent.",
            hint=f"Check what api_key or {KEY_VARIABLE} holds: one line, without quotes of another alphabet.",
        )
    return key or None


def collection_name(prefix: str, namespace: str) -> str:
    """Readable for plain names, else with a hash: two namespaces never meet in one collection."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,100}", namespace):
        return f"{prefix}{namespace}"
    return f"{prefix}.{hashlib.sha256(namespace.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


class QdrantIndex:
    """`VectorIndex` in one collection, which is created if it is not there.

    Args:
        client: of qdrant-client.
        namespace: which compartment.
        dim: of the dense vectors.
        token_dim: of the token vectors, or None for none.
        eight_bits: keep the vectors in a byte a number (a server from 1.18 on).
        prefix: of the collection's name.
        owned: close the client with this index.
        fresh: throw away a collection that is there, whatever it holds.
        make_async: makes a client of the same server for event loops; None if there is none, as in RAM.

    Raises:
        StoreMismatchError: the collection has other dimensions.
        StorageError: the server does not answer or refuses.
    """

    def __init__(
        self,
        client: QdrantClient,
        *,
        namespace: str,
        dim: int,
        token_dim: int | None = None,
        eight_bits: bool = False,
        prefix: str = "nnm-",
        owned: bool = False,
        fresh: bool = False,
        make_async: Callable[[], AsyncQdrantClient] | None = None,
    ) -> None:
        self._client: QdrantClient | None = client
        self._name = collection_name(prefix, namespace)
        self._dim, self._token_dim, self._eight_bits, self._owned = dim, token_dim, eight_bits, owned
        self._awaited = (
            None if make_async is None else AsyncQdrantSearch(make_async, self._name, dim=dim, token_dim=token_dim)
        )
        # The local mode is plain Python without locks of its own.
        self._lock = threading.RLock()
        with self._use() as opened:
            there = opened.collection_exists(self._name)
            if there and fresh:
                opened.delete_collection(self._name)
            if fresh or not there:
                self._create(opened)
            self._check_dimensions(opened)

    def _create(self, client: QdrantClient) -> None:
        kind = models.Datatype.TURBO8 if self._eight_bits else None
        vectors = {"dense": models.VectorParams(size=self._dim, distance=models.Distance.COSINE, datatype=kind)}
        if self._token_dim is not None:
            vectors["tokens"] = models.VectorParams(
                size=self._token_dim,
                distance=models.Distance.COSINE,
                datatype=kind,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
                hnsw_config=models.HnswConfigDiff(m=0),
            )
        sparse = {"sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)}
        client.create_collection(self._name, vectors_config=vectors, sparse_vectors_config=sparse)

    def _check_dimensions(self, client: QdrantClient) -> None:
        params = client.get_collection(self._name).config.params
        vectors = params.vectors if isinstance(params.vectors, dict) else {}
        made = tuple(vectors[name].size if name in vectors else None for name in ("dense", "tokens"))
        if made != (self._dim, self._token_dim) or "sparse" not in (params.sparse_vectors or {}):
            raise StoreMismatchError(
                f"The collection {self._name!r} is for dense and token vectors of {made} dimensions, "
                f"not {(self._dim, self._token_dim)}.",
                hint="Open it with the model that made it, or use another prefix or namespace.",
            )

    # -- writing ------------------------------------------------------------------------------------------------

    def upsert(self, points: Sequence[Point]) -> None:
        """See `VectorIndex`."""
        ready = [_encode(checked(p, dim=self._dim, token_dim=self._token_dim)) for p in points]
        with self._use() as client:
            for start in range(0, len(ready), PAGE):
                client.upsert(self._name, ready[start : start + PAGE], wait=True)

    def delete(self, ids: Iterable[str]) -> None:
        """See `VectorIndex`."""
        gone: list[Any] = [check_id(point_id) for point_id in ids]
        if gone:
            with self._use() as client:
                client.delete(self._name, models.PointIdsList(points=gone), wait=True)

    def purge(self) -> None:
        """See `VectorIndex`: a server's optimizer rewrites its segments by itself; there is nothing to ask it for."""

    def optimize(self) -> None:
        """See `VectorIndex`: a server's optimizer works by itself."""

    def clear(self) -> None:
        """See `VectorIndex`."""
        with self._use() as client:
            client.delete_collection(self._name)
            self._create(client)

    def close(self) -> None:
        """See `VectorIndex`."""
        with self._lock:
            client, self._client = self._client, None
            if self._awaited is not None:
                self._awaited.close()
            if client is not None and self._owned:
                client.close()

    def awaited(self) -> AsyncQdrantSearch | None:
        """See `VectorIndex`."""
        return self._awaited

    # -- searching ----------------------------------------------------------------------------------------------

    def search_dense(self, vector: Array, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """See `VectorIndex`."""
        return self._query(check_dense(vector, self._dim).tolist(), "dense", limit, self._translate(filter))

    def search_sparse(self, vector: SparseVector, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """See `VectorIndex`."""
        check_limit(limit)
        if not len(vector):
            return []
        return self._query(encode_sparse(vector), "sparse", limit, self._translate(filter))

    def rescore_tokens(self, vectors: Array, ids: Sequence[str], *, limit: int) -> list[ScoredPoint]:
        """See `VectorIndex`."""
        query = check_tokens(vectors, self._token_dim).tolist()
        only = models.Filter(must=[QdrantDialect().points([check_id(point_id) for point_id in ids])])
        return self._query(query, "tokens", limit, only)

    def _query(self, query: Any, using: str, limit: int, condition: models.Filter | None) -> list[ScoredPoint]:
        check_limit(limit)
        with self._use() as client:
            found = client.query_points(
                self._name,
                query,
                using=using,
                limit=limit,
                query_filter=condition,
                search_params=search_params(limit, local=is_local(client.init_options)),
                with_payload=False,
            )
        return ranked(ScoredPoint(str(hit.id), hit.score) for hit in found.points)

    def retrieve(self, ids: Sequence[str]) -> list[Point | None]:
        """See `VectorIndex`."""
        wanted = [check_id(point_id) for point_id in ids]
        with self._use() as client:
            records = client.retrieve(self._name, wanted, with_payload=True, with_vectors=True)
        found = {str(record.id): record for record in records}
        return [_decode(found[point_id]) if point_id in found else None for point_id in wanted]

    def count(self, filter: Filter | None = None) -> int:
        """See `VectorIndex`."""
        condition = self._translate(filter)
        with self._use() as client:
            return client.count(self._name, count_filter=condition, exact=True).count

    def ids(self) -> Iterator[str]:
        """See `VectorIndex`."""
        return (point_id for point_id, _ in self._scroll(with_payload=False))

    def _scroll(self, *, with_payload: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        offset: Any = None
        while True:
            with self._use() as client:
                records, offset = client.scroll(
                    self._name, limit=PAGE, offset=offset, with_payload=with_payload, with_vectors=False
                )
            for record in records:
                yield str(record.id), record.payload or {}
            if offset is None:
                return

    def _translate(self, condition: Filter | None) -> models.Filter | None:
        if condition is None:
            return None
        translated: models.Filter = translate(condition, QdrantDialect(), self._scan)
        return translated

    def _scan(self, condition: Filter) -> Collection[str]:
        return scan(self._scroll(with_payload=True), condition)

    @contextmanager
    def _use(self) -> Iterator[QdrantClient]:
        with self._lock:
            if self._client is None:
                raise EngineClosedError("The index is closed.", hint="Open the store again.")
            with server_errors(self._name):
                yield self._client


def _encode(point: Point) -> models.PointStruct:
    vector: dict[str, Any] = {}
    if point.dense is not None:
        vector["dense"] = point.dense.tolist()
    if point.sparse is not None:
        vector["sparse"] = encode_sparse(point.sparse)
    if point.tokens is not None:
        vector["tokens"] = point.tokens.tolist()
    return models.PointStruct(id=point.id, vector=vector, payload=dict(point.payload))


def _decode(record: models.Record) -> Point:
    vectors: Any = record.vector or {}
    sparse, dense, tokens = (vectors.get(name) for name in ("sparse", "dense", "tokens"))
    return Point(
        id=str(record.id),
        dense=None if dense is None else np.asarray(dense, dtype=np.float32),
        sparse=None if sparse is None else SparseVector(np.asarray(sparse.indices), np.asarray(sparse.values)),
        tokens=None if tokens is None else np.asarray(tokens, dtype=np.float32),
        payload=record.payload or {},
    )
