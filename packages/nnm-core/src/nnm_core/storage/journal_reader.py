"""Reading the journal: live versions, histories, streams and settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnm_core.errors import InvalidInputError
from nnm_core.records import Memory
from nnm_core.storage import journal_schema as schema
from nnm_core.storage.database import Database
from nnm_core.storage.journal_records import Entry, StateRef

_BY_ID = """
SELECT seq, id, version, status, tombstone, text, metadata, created, supersedes, digest, point, tokens
FROM versions WHERE id = ? AND status != 0 ORDER BY version
"""
_LIVE_BY_ID = """
SELECT seq, id, version, status, tombstone, text, metadata, created, supersedes, digest, point, tokens
FROM versions WHERE id = ? AND status = 1 AND tombstone = 0
"""
_LIVE_BY_POINT = """
SELECT seq, id, version, status, tombstone, text, metadata, created, supersedes, digest, point, tokens
FROM versions WHERE point = ? AND status = 1 AND tombstone = 0
"""
_VECTOR_BY_ID = "SELECT id, vector, shape FROM versions WHERE id = ? AND status = 1 AND tombstone = 0"
_LIVE_AFTER = """
SELECT seq, id, version, status, tombstone, text, metadata, created, supersedes, digest, point, tokens
FROM versions WHERE status = 1 AND tombstone = 0 AND seq > ? ORDER BY seq LIMIT ?
"""
_RAW_AFTER = """
SELECT seq, id, version, status, tombstone, text, metadata, created, supersedes, digest, point, tokens, vector, shape
FROM versions WHERE status = 1 AND tombstone = 0 AND seq > ? ORDER BY seq LIMIT ?
"""


class JournalReader:
    """The reading half of `Journal`."""

    def __init__(self, path: Path | None, *, namespace: str = "default") -> None:
        self.namespace = namespace
        self._db = Database(path)

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        """The live versions of `ids`, in their order; None where there is none."""
        return self._each(_LIVE_BY_ID, ids)

    def by_points(self, points: Sequence[str]) -> list[Entry | None]:
        """The live versions whose vectors are at `points`, in their order; None where there is none."""
        return self._each(_LIVE_BY_POINT, points)

    def vectors(self, ids: Sequence[str]) -> list[np.ndarray[Any, Any] | None]:
        """The raw vectors of the live versions of `ids`, float32, in their order; None where there is none."""
        rows = [row for name in dict.fromkeys(ids) for row in self._db.read(_VECTOR_BY_ID, (name,))]
        found = {row[0]: schema.decode_vector(row[1], row[2]) for row in rows}
        vectors = [found.get(name) for name in ids]
        return [None if vector is None else vector.astype(np.float32) for vector in vectors]

    def _each(self, sql: str, names: Sequence[str]) -> list[Entry | None]:
        found = self._entries([row for name in dict.fromkeys(names) for row in self._db.read(sql, (name,))])
        by_name = {(entry.memory.id if sql is _LIVE_BY_ID else entry.point): entry for entry in found}
        return [by_name.get(name) for name in names]

    def history(self, memory_id: str) -> list[Entry]:
        """All committed versions of an id, oldest first; deletions are entries with `tombstone`."""
        return self._entries(self._db.read(_BY_ID, (memory_id,)))

    def live_count(self) -> int:
        """How many memories there are."""
        return int(self._db.read("SELECT COUNT(*) FROM versions WHERE status = 1 AND tombstone = 0")[0][0])

    def token_count(self) -> int:
        """Tokens of all memories together, as their writers counted them."""
        sql = "SELECT COALESCE(SUM(tokens), 0) FROM versions WHERE status = 1 AND tombstone = 0"
        return int(self._db.read(sql)[0][0])

    def live_points(self) -> set[str]:
        """The points that the index must hold."""
        return {row[0] for row in self._db.read("SELECT point FROM versions WHERE status = 1 AND tombstone = 0")}

    def state_keys(self) -> set[str]:
        """The keys of all blobs that the journal knows."""
        return {row[0] for row in self._db.read("SELECT DISTINCT key FROM states")}

    def iter_live(self, batch: int = 256) -> Iterator[list[Entry]]:
        """All live memories in the order of their versions, a batch at a time; others may write meanwhile."""
        for rows in self._pages(_LIVE_AFTER, batch):
            yield self._entries(rows)

    def iter_raw(self, batch: int = 256) -> Iterator[list[tuple[Entry, np.ndarray[Any, Any] | None]]]:
        """As `iter_live`, each with its raw vector: enough to rebuild the index without the model."""
        for rows in self._pages(_RAW_AFTER, batch):
            entries = self._entries(row[:-2] for row in rows)
            vectors = [schema.decode_vector(row[-2], row[-1]) for row in rows]
            yield list(zip(entries, vectors, strict=True))

    def _pages(self, sql: str, batch: int) -> Iterator[list[tuple[Any, ...]]]:
        if batch < 1:
            raise InvalidInputError(f"A batch needs at least one row, not {batch}.")
        last = 0
        while rows := self._db.read(sql, (last, batch)):
            last = rows[-1][0]
            yield rows

    def _entries(self, rows: Iterable[tuple[Any, ...]]) -> list[Entry]:
        return [
            Entry(
                memory=Memory(
                    id=row[1],
                    text=row[5],
                    metadata=schema.decode_metadata(row[6]),
                    namespace=self.namespace,
                    version=row[2],
                    created=row[7],
                    supersedes=row[8],
                    digest=row[9],
                ),
                point=row[10],
                tokens=row[11],
                tombstone=bool(row[4]),
                states=self._states(row[10]),
            )
            for row in rows
        ]

    def _states(self, point: str) -> tuple[StateRef, ...]:
        rows = self._db.read(
            "SELECT key, left_context FROM states WHERE point = ? AND owner = 1 ORDER BY key", (point,)
        )
        return tuple(StateRef(key, left) for key, left in rows)

    def get_setting(self, key: str, default: Any = None) -> Any:
        """A value that `set_setting` was given: bytes come back as bytes, all else through JSON."""
        return self._db.get_setting(key, default)

    def set_setting(self, key: str, value: Any) -> None:
        """Keep a JSON value or bytes (model fingerprint, whitening, ...) with the memories."""
        self._db.set_setting(key, value)

    def close(self) -> None:
        """Close the file; what was committed is safe without it."""
        self._db.close()
