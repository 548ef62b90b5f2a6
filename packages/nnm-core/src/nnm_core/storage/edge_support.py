"""Settings, conversions and errors of the embedded index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import qdrant_edge as edge

from nnm_core.errors import EngineClosedError, StorageError
from nnm_core.storage.edge_filters import decode_payload, encode_payload
from nnm_core.storage.index import Point, SparseVector

# Up to here every vector is compared (a few ms, recall 1); beyond, `optimize` builds the HNSW graph.
EXACT_UP_TO = 50_000


def make_config(dim: int, token_dim: int | None, *, eight_bits: bool = False, erase: bool = False) -> edge.EdgeConfig:
    """Settings of a shard.

    Args:
        dim: of the dense vectors.
        token_dim: of the token vectors, or None for none.
        eight_bits: keep a byte a number and nothing else (TurboQuant: rotated, then rounded), a quarter of the space.
        erase: the next `optimize` rewrites every segment that has a deleted point.
    """
    # Cold: otherwise the engine fills each of its sparse 32 MB files with zeros when it opens them, 98 MB a namespace
    # (on a nearly full disk: SIGBUS). The system caches what is read either way.
    kind = edge.VectorStorageDatatype.Turbo8 if eight_bits else edge.VectorStorageDatatype.Float32
    vectors = {"dense": edge.EdgeVectorParams(dim, edge.Distance.Cosine, datatype=kind, memory=edge.Memory.Cold)}
    if token_dim is not None:
        vectors["tokens"] = edge.EdgeVectorParams(
            token_dim,
            edge.Distance.Cosine,
            datatype=kind,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            hnsw_config=edge.HnswIndexConfig(0, 100, EXACT_UP_TO),  # m=0: no graph, it only re-scores
            memory=edge.Memory.Cold,
        )
    return edge.EdgeConfig(
        vectors=vectors,
        sparse_vectors={"sparse": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
        optimizers=edge.EdgeOptimizersConfig(
            deleted_threshold=0.0 if erase else 0.2,
            vacuum_min_vector_number=0 if erase else 1_000,
            indexing_threshold=max(1, EXACT_UP_TO * dim * 4 // 1024),  # in KB
            default_segment_number=1,
        ),
        wal_enabled=False,
    )


def encode_point(point: Point) -> edge.Point:
    """The engine's point; vectors that are None are left out."""
    vector: dict[str, Any] = {}
    if point.dense is not None:
        vector["dense"] = point.dense.tolist()
    if point.sparse is not None:
        vector["sparse"] = edge.SparseVector(point.sparse.indices.tolist(), point.sparse.values.tolist())
    if point.tokens is not None:
        vector["tokens"] = point.tokens.tolist()
    return edge.Point(point.id, vector, encode_payload(point.payload))


def point_nbytes(point: Point) -> int:
    """Roughly how much of the disk a point takes."""
    arrays = sum(np.asarray(array).size * 4 for array in (point.dense, point.tokens) if array is not None)
    sparse = 0 if point.sparse is None else 16 * len(point.sparse)
    return arrays + sparse + len(json.dumps(dict(point.payload), default=str)) + 128


def decode_record(record: edge.Record) -> Point:
    """The point of a record."""
    vectors: Any = record.vector or {}
    sparse = vectors.get("sparse")
    dense, tokens = vectors.get("dense"), vectors.get("tokens")
    return Point(
        id=str(record.id),
        dense=None if dense is None else np.asarray(dense, dtype=np.float32),
        sparse=None if sparse is None else SparseVector(np.asarray(sparse.indices), np.asarray(sparse.values)),
        tokens=None if tokens is None else np.asarray(tokens, dtype=np.float32),
        payload=decode_payload(record.payload or {}),
    )


@contextmanager
def translated(kind: type[StorageError], what: str) -> Iterator[None]:
    """Turn the engine's errors into ours.

    It raises plain `Exception` for all that goes wrong, and on damaged files a panic, which derives from
    BaseException; nothing narrower can be caught.
    """
    try:
        yield
    except (StorageError, EngineClosedError):
        raise
    except Exception as error:
        raise _error(kind, what, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _error(kind, what, error) from error


def _error(kind: type[StorageError], what: str, error: BaseException) -> StorageError:
    hint = "Rebuild the index from the journal: nothing else is lost."
    if "No space left" in str(error):
        kind, hint = StorageError, "The disk is full: free some space; the memories are safe in the journal."
    elif "Read-only" in str(error) or "Permission denied" in str(error):
        kind, hint = StorageError, "The folder cannot be written: check its owner and the disk."
    elif "Validation failed" in str(error):
        kind, hint = StorageError, "The engine refuses this request; please report it. The index itself is fine."
    return kind(f"{what}: {error}.", hint=hint)
