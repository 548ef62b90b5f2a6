"""What a vector index does, and the values that go in and out of it."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from nnm_core.errors import InvalidInputError
from nnm_core.storage.filters import Filter, matches
from nnm_core.storage.paths import storage_error

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights of a few of very many dimensions.

    Attributes:
        indices: [n] distinct integers of 0 to 2**32 - 1.
        values: [n] finite weights.

    Raises:
        InvalidInputError: anything else (an index would take duplicates silently and score them wrongly).
    """

    indices: Array
    values: Array

    def __post_init__(self) -> None:
        indices, values = np.asarray(self.indices), np.asarray(self.values, dtype=np.float32)
        if indices.ndim != 1 or indices.shape != values.shape:
            raise InvalidInputError(f"A sparse vector has indices {indices.shape} and values {values.shape}.")
        if indices.size and (not np.issubdtype(indices.dtype, np.integer) or indices.min() < 0):
            raise InvalidInputError("Sparse indices must be integers from 0 on.")
        if indices.size and (indices.max() >= 2**32 or np.unique(indices).size != indices.size):
            raise InvalidInputError("Sparse indices must be distinct and below 2**32.")
        if not np.isfinite(values).all():
            raise InvalidInputError("Sparse values must be finite.")
        object.__setattr__(self, "indices", indices.astype(np.int64, copy=False))
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return int(self.indices.size)


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """The vectors of one version of a memory.

    Attributes:
        id: a UUID as text, from `Journal.begin`.
        dense: [d] float32, any length but zero; the index compares by cosine.
        sparse: token weights; the index multiplies IDF in.
        tokens: [n, token_d] float32, for `rescore_tokens`.
        payload: ``{"id": memory id, "metadata": {...}}``. No text: the journal has it.
    """

    id: str
    dense: Array | None = None
    sparse: SparseVector | None = None
    tokens: Array | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoredPoint:
    """A point that a search found; higher is better."""

    id: str
    score: float


class VectorIndex(Protocol):
    """The vectors of one namespace.

    What `upsert` and `delete` did is in the next search's result, and on disk when they return. All methods may be
    called from several threads. Results come best first.

    Raises (all methods):
        InvalidInputError: wrong dimension, not finite, zero vector, id that is no UUID.
        FilterError: a filter that cannot be understood.
        StorageError: the index cannot be read or written (disk full, server away).
        IndexDamagedError: rebuild it from the journal.
        EngineClosedError: after `close`.
    """

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert points, replacing those of the same id as a whole."""

    def delete(self, ids: Iterable[str]) -> None:
        """Remove points; ids that are not there are passed over."""

    def purge(self) -> None:
        """Make the bytes of deleted points leave the disk (a server does it in its own time)."""

    def search_dense(self, vector: Array, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """The `limit` points of highest cosine with `vector` [d] that pass the filter."""

    def search_sparse(self, vector: SparseVector, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """The `limit` points of highest IDF-weighted dot product that share an index with `vector`."""

    def rescore_tokens(self, vectors: Array, ids: Sequence[str], *, limit: int) -> list[ScoredPoint]:
        """MaxSim (sum over query tokens of the best cosine) of `vectors` [q, token_d] with the points `ids`.

        Raises:
            InvalidInputError: the index keeps no token vectors.
        """

    def retrieve(self, ids: Sequence[str]) -> list[Point | None]:
        """Points with vectors and payload, in the order of `ids`; None where missing. Dense comes back normalised."""

    def count(self, filter: Filter | None = None) -> int:
        """How many points pass the filter, exactly."""

    def ids(self) -> Iterator[str]:
        """The ids of all points."""

    def awaited(self) -> AsyncVectorSearch | None:
        """The same searches for an event loop, if this index is at the other end of a network; else None."""

    def optimize(self) -> None:
        """Build search structures; blocks. Results are complete without it, only slower to find."""

    def clear(self) -> None:
        """Remove everything."""

    def close(self) -> None:
        """Flush and release the files; a second call does nothing."""


class AsyncVectorSearch(Protocol):
    """The searches of an index on a server, awaited: no thread waits for the network. See `VectorIndex`."""

    async def search_dense(self, vector: Array, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """As `VectorIndex.search_dense`."""

    async def search_sparse(
        self, vector: SparseVector, *, limit: int, filter: Filter | None = None
    ) -> list[ScoredPoint]:
        """As `VectorIndex.search_sparse`."""

    async def rescore_tokens(self, vectors: Array, ids: Sequence[str], *, limit: int) -> list[ScoredPoint]:
        """As `VectorIndex.rescore_tokens`."""


def open_index(
    path: Path | None,
    *,
    namespace: str,
    dim: int,
    url: str | None = None,
    client: QdrantClient | None = None,
    token_dim: int | None = None,
    eight_bits: bool = False,
    api_key: str | None = None,
    prefix: str = "nnm-",
    fresh: bool = False,
) -> VectorIndex:
    """Open or create the index of a namespace.

    With `client` or `url` it is a collection of a Qdrant server, else with `path` (the directory of this index) an
    embedded one on disk, else one in RAM.

    Args:
        path: directory of the embedded index; its parent must be locked by the caller.
        namespace: which compartment; one collection or directory each.
        dim: of the dense vectors.
        url: of a Qdrant server.
        client: an existing client; it is not closed by `close`.
        token_dim: of the token vectors; None keeps none.
        eight_bits: keep dense and token vectors in a byte a number.
        api_key: for `url`; None takes QDRANT_API_KEY from the environment.
        prefix: of the collection's name on a server.
        fresh: begin with an empty index, whatever is there (a damaged one, or one of other dimensions).

    Raises:
        StoreMismatchError: it exists with other dimensions.
        IndexDamagedError: it exists and cannot be read.
        StorageError: the disk or the server refuses.
    """
    if dim < 1 or (token_dim is not None and token_dim < 1):
        raise InvalidInputError(f"Vectors need at least one dimension, not {dim} and {token_dim}.")
    if path is not None and url is None and client is None:
        if fresh:
            discard_index(path)
        from nnm_core.storage.edge import EdgeIndex

        return EdgeIndex(path, dim=dim, token_dim=token_dim, eight_bits=eight_bits)
    from nnm_core.storage.qdrant import QdrantIndex, make_async_client, make_client

    return QdrantIndex(
        client if client is not None else make_client(url, api_key=api_key),
        namespace=namespace,
        dim=dim,
        token_dim=token_dim,
        eight_bits=eight_bits,
        prefix=prefix,
        owned=client is None,
        fresh=fresh,
        make_async=None if url is None else partial(make_async_client, url, api_key=api_key),
    )


def discard_index(path: Path) -> None:
    """Remove the directory of an embedded index that is damaged, so that `open_index` makes a new one to fill.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise storage_error(f"Cannot remove the index in {path}", error) from error


# -- shared by the implementations ------------------------------------------------------------------------------


def check_id(point_id: str) -> str:
    """A UUID in its usual spelling, or InvalidInputError."""
    try:
        return str(UUID(point_id))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInputError(f"A point id must be a UUID, not {point_id!r}.") from error


def check_dense(vector: Array, dim: int) -> npt.NDArray[np.float32]:
    """[dim] float32, finite, not zero; or InvalidInputError."""
    array = np.asarray(vector, dtype=np.float32)
    if array.shape != (dim,):
        raise InvalidInputError(f"A dense vector of this index has shape ({dim},), not {array.shape}.")
    if not np.isfinite(array).all() or not array.any():
        raise InvalidInputError("A dense vector must be finite and not zero: no angle is defined for it.")
    return array


def check_tokens(vectors: Array, token_dim: int | None) -> npt.NDArray[np.float32]:
    """[n >= 1, token_dim] float32, finite; or InvalidInputError."""
    if token_dim is None:
        raise InvalidInputError("This index keeps no token vectors.", hint="Open it with token_dim=...")
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or not array.shape[0] or array.shape[1] != token_dim:
        raise InvalidInputError(f"Token vectors of this index have shape (n, {token_dim}), not {array.shape}.")
    if not np.isfinite(array).all() or not array.any(axis=1).all():
        raise InvalidInputError("Token vectors must be finite and not zero.")
    return array


def check_limit(limit: int) -> int:
    """At least one, or InvalidInputError."""
    if limit < 1:
        raise InvalidInputError(f"The limit must be at least 1, not {limit}.")
    return limit


def checked(point: Point, *, dim: int, token_dim: int | None) -> Point:
    """The point with arrays in the index's types, or InvalidInputError; empty vectors become None."""
    return Point(
        id=check_id(point.id),
        dense=None if point.dense is None else check_dense(point.dense, dim),
        sparse=point.sparse if point.sparse is not None and len(point.sparse) else None,
        tokens=None if point.tokens is None else check_tokens(point.tokens, token_dim),
        payload=point.payload,
    )


def ranked(scored: Iterable[ScoredPoint]) -> list[ScoredPoint]:
    """Best first, equal scores by id: the same order on every run."""
    return sorted(scored, key=lambda hit: (-hit.score, hit.id))


def scan(payloads: Iterable[tuple[str, Mapping[str, Any]]], condition: Filter) -> Collection[str]:
    """The ids whose payload's metadata passes a condition that the index itself cannot express."""
    return {point_id for point_id, payload in payloads if matches(condition, payload.get("metadata") or {})}
