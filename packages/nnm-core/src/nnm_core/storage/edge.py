"""The embedded index: Qdrant's engine inside this process, through `qdrant-edge-py`.

Its own write-ahead log is off: the log would keep deleted payloads for as long as it likes (forgetting could not be
honest) and it costs more than the flush that each call here ends with. Whatever a crash may take away, the journal
brings back.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from nnm_core.errors import EngineClosedError, IndexDamagedError, StorageError, StoreMismatchError
from nnm_core.storage import edge_support
from nnm_core.storage.edge_filters import EdgeDialect, decode_payload, wanted_indexes
from nnm_core.storage.edge_support import decode_record, encode_point, make_config, point_nbytes, translated
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
from nnm_core.storage.paths import make_private_directory, storage_error

# Width of the graph search: recall above 0.99 on embeddings for a small part of the cost of comparing all.
_HNSW_EF = 256
# With fewer points than this a payload index costs more than it saves.
_FIELD_INDEX_FROM = 2_000
_PAGE = 1_000
# The engine writes through memory maps of sparse files: on a full disk that is not an error but a SIGBUS, which ends
# the process. So we stop well before.
_RESERVE = 16 * 2**20


class EdgeIndex:
    """`VectorIndex` in a directory of its own. The caller holds the namespace's lock.

    Args:
        path: the directory; created if it is not there.
        dim: of the dense vectors.
        token_dim: of the token vectors, or None for none.
        eight_bits: keep the vectors in a byte a number.

    Raises:
        IndexDamagedError: the directory exists and cannot be read.
        StoreMismatchError: it was made for other dimensions.
    """

    def __init__(self, path: Path, *, dim: int, token_dim: int | None = None, eight_bits: bool = False) -> None:
        self._path, self._dim, self._token_dim, self._eight_bits = path, dim, token_dim, eight_bits
        self._lock = threading.RLock()
        self._field_indexes: dict[str, edge.PayloadSchemaType] = {}
        self._shard: edge.EdgeShard | None = self._open()
        self._read_field_indexes()
        self._count = self.count()
        self._probe()

    def _read_field_indexes(self) -> None:
        with self._use() as shard, translated(IndexDamagedError, f"The index in {self._path} cannot be read"):
            schema: Mapping[str, Any] = shard.info().payload_schema
        self._field_indexes = {path: info.data_type for path, info in schema.items()}

    def _probe(self) -> None:
        """Read a little of everything: damage shall show at opening and not in the first question."""
        hits = self.search_dense(np.ones(self._dim), limit=1)
        self.retrieve([hit.id for hit in hits])

    def _open(self) -> edge.EdgeShard:
        try:
            fresh = not self._path.exists() or not any(self._path.iterdir())
        except OSError as error:
            raise storage_error(f"Cannot read the index in {self._path}", error) from error
        self._require_space(0)
        if fresh:
            make_private_directory(self._path)
            with translated(StorageError, "The index could not be created"):
                return edge.EdgeShard.create(str(self._path), self._config())
        self._check_dimensions()
        with translated(IndexDamagedError, f"The index in {self._path} cannot be read"):
            return edge.EdgeShard.load(str(self._path), self._config())

    def _config(self, *, erase: bool = False) -> edge.EdgeConfig:
        return make_config(self._dim, self._token_dim, eight_bits=self._eight_bits, erase=erase)

    def _check_dimensions(self) -> None:
        try:
            vectors = json.loads((self._path / "edge_config.json").read_text())["vectors"]
            eight_bits = str(vectors["dense"].get("datatype") or "").casefold() == "turbo8"
            made = (vectors["dense"]["size"], vectors["tokens"]["size"] if "tokens" in vectors else None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexDamagedError(
                f"The index in {self._path} has no readable configuration.", hint="Rebuild it from the journal."
            ) from error
        if made != (self._dim, self._token_dim):
            raise StoreMismatchError(
                f"The index in {self._path} is for dense and token vectors of {made} dimensions, "
                f"not {(self._dim, self._token_dim)}.",
                hint="Open it with the model that made it, or remove the index folder so that it is rebuilt.",
            )
        if eight_bits != self._eight_bits:
            raise StoreMismatchError(
                f"The index in {self._path} keeps its vectors in {'8' if eight_bits else '32'} bits a number.",
                hint="Open it as it was made, or remove the index folder so that it is rebuilt.",
            )

    # -- writing ------------------------------------------------------------------------------------------------

    def upsert(self, points: Sequence[Point]) -> None:
        """See `VectorIndex`."""
        ready = [encode_point(checked(p, dim=self._dim, token_dim=self._token_dim)) for p in points]
        if ready:
            self._require_space(2 * sum(point_nbytes(point) for point in points))
            self._update(edge.UpdateOperation.upsert_points(ready))

    def _require_space(self, need: int) -> None:
        place = next(path for path in (self._path, *self._path.absolute().parents) if path.exists())
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise storage_error(f"Cannot look at the disk of {self._path}", error) from error
        if free < need + _RESERVE:
            raise StorageError(
                f"The disk of the index in {self._path} has only {free / 2**20:.0f} MB left.",
                hint="The disk is full: free some space; what was stored before is intact.",
            )

    def delete(self, ids: Iterable[str]) -> None:
        """See `VectorIndex`."""
        gone: list[Any] = [UUID(check_id(point_id)) for point_id in ids]
        if gone:
            self._update(edge.UpdateOperation.delete_points(gone))

    def _update(self, operation: edge.UpdateOperation) -> None:
        with self._use() as shard, translated(StorageError, f"The index in {self._path} could not be written"):
            shard.update(operation)
            shard.flush()
            self._count = shard.count(edge.CountRequest(exact=True))

    def purge(self) -> None:
        """See `VectorIndex`: rewrites the segments that have deleted points (0.5 s for 20,000 x 384)."""
        self._require_space(self._disk_size())
        with self._use() as shard, translated(StorageError, f"The index in {self._path} could not be rewritten"):
            shard.close()
            self._shard = None
            try:
                eraser = edge.EdgeShard.load(str(self._path), self._config(erase=True))
                eraser.optimize()
                eraser.flush()
                eraser.close()
            finally:
                self._shard = edge.EdgeShard.load(str(self._path), self._config())

    def optimize(self) -> None:
        """See `VectorIndex`."""
        self._require_space(self._disk_size())
        with self._use() as shard, translated(StorageError, f"The index in {self._path} could not be optimized"):
            shard.optimize()
            shard.flush()

    def _disk_size(self) -> int:
        # st_blocks: the files are sparse. Segments may go while we look, when another thread purges.
        total = 0
        for path in self._path.rglob("*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                total += getattr(status, "st_blocks", status.st_size // 512) * 512
        return total

    def clear(self) -> None:
        """See `VectorIndex`."""
        with self._use() as shard:
            with translated(StorageError, f"The index in {self._path} could not be closed"):
                shard.close()
            self._shard = None
            try:
                shutil.rmtree(self._path)
            except OSError as error:
                raise storage_error(f"Cannot clear {self._path}", error) from error
            self._field_indexes.clear()
            self._shard = self._open()
            self._count = 0

    def close(self) -> None:
        """See `VectorIndex`."""
        with self._lock, translated(StorageError, f"The index in {self._path} could not be flushed"):
            shard, self._shard = self._shard, None
            if shard is not None:
                shard.flush()
                shard.close()

    # -- searching ----------------------------------------------------------------------------------------------

    def search_dense(self, vector: Array, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """See `VectorIndex`."""
        return self._query(check_dense(vector, self._dim).tolist(), "dense", limit, self._translate(filter))

    def search_sparse(self, vector: SparseVector, *, limit: int, filter: Filter | None = None) -> list[ScoredPoint]:
        """See `VectorIndex`."""
        check_limit(limit)
        if not len(vector):
            return []
        query = edge.SparseVector(vector.indices.tolist(), vector.values.tolist())
        return self._query(query, "sparse", limit, self._translate(filter))

    def rescore_tokens(self, vectors: Array, ids: Sequence[str], *, limit: int) -> list[ScoredPoint]:
        """See `VectorIndex`."""
        query = check_tokens(vectors, self._token_dim).tolist()
        only = edge.Filter(must=[EdgeDialect().points([check_id(point_id) for point_id in ids])])
        return self._query(query, "tokens", limit, only)

    def _query(self, query: Any, using: str, limit: int, condition: edge.Filter | None) -> list[ScoredPoint]:
        request = edge.QueryRequest(
            check_limit(limit),
            query=edge.Query.Nearest(query, using=using),
            filter=condition,
            params=edge.SearchParams(
                hnsw_ef=max(_HNSW_EF, limit),
                exact=self._count <= edge_support.EXACT_UP_TO,
                # An empty filter: IDF over the points that are there. Without it deleted ones count until `optimize`.
                idf=edge.IdfParams(corpus=edge.Filter()) if using == "sparse" else None,
            ),
        )
        with self._use() as shard, translated(IndexDamagedError, f"The index in {self._path} could not be searched"):
            return ranked(ScoredPoint(str(hit.id), hit.score) for hit in shard.query(request))

    def retrieve(self, ids: Sequence[str]) -> list[Point | None]:
        """See `VectorIndex`."""
        wanted: list[Any] = [UUID(check_id(point_id)) for point_id in ids]
        with self._use() as shard, translated(IndexDamagedError, f"The index in {self._path} could not be read"):
            found = {str(record.id): record for record in shard.retrieve(wanted, True, True)}
        return [decode_record(found[str(point_id)]) if str(point_id) in found else None for point_id in wanted]

    def count(self, filter: Filter | None = None) -> int:
        """See `VectorIndex`."""
        condition = self._translate(filter)
        with self._use() as shard, translated(IndexDamagedError, f"The index in {self._path} could not be counted"):
            return int(shard.count(edge.CountRequest(exact=True, filter=condition)))

    def ids(self) -> Iterator[str]:
        """See `VectorIndex`."""
        return (point_id for point_id, _ in self._scroll(with_payload=False))

    def awaited(self) -> None:
        """See `VectorIndex`: this index is in the process, nothing is waited for."""

    def _scroll(self, *, with_payload: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        offset: Any = None
        while True:
            request = edge.ScrollRequest(offset=offset, limit=_PAGE, with_payload=with_payload, with_vector=False)
            with self._use() as shard, translated(IndexDamagedError, f"The index in {self._path} could not be read"):
                records, offset = shard.scroll(request)
            for record in records:
                yield str(record.id), decode_payload(record.payload or {})
            if offset is None:
                return

    def _translate(self, condition: Filter | None) -> edge.Filter | None:
        if condition is None:
            return None
        if self._count >= _FIELD_INDEX_FROM:
            self._index_fields(wanted_indexes(condition))
        translated: edge.Filter = translate(condition, EdgeDialect(self._numeric()), self._scan)
        return translated

    def _scan(self, condition: Filter) -> Collection[str]:
        return scan(self._scroll(with_payload=True), condition)

    def _index_fields(self, wanted: Mapping[str, edge.PayloadSchemaType]) -> None:
        with self._use() as shard, translated(StorageError, f"The index in {self._path} could not be extended"):
            for path in wanted.keys() - self._field_indexes:
                shard.update(edge.UpdateOperation.create_field_index(path, wanted[path]))
                self._field_indexes[path] = wanted[path]

    def _numeric(self) -> set[str]:
        return {path for path, kind in self._field_indexes.items() if kind == edge.PayloadSchemaType.Float}

    @contextmanager
    def _use(self) -> Iterator[edge.EdgeShard]:
        with self._lock:
            if self._shard is None:
                raise EngineClosedError("The index is closed.", hint="Open the store again.")
            yield self._shard
