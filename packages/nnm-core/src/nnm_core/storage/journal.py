"""The journal: the truth of a namespace. Texts, versions and raw vectors, in one SQLite file.

Writing is in three steps, so that a kill at any instant leaves whole memories and removable rests:

1. `begin` inserts the new versions as *pending*, each with a fresh point id;
2. the caller writes blobs and vectors under those points;
3. `commit` makes them live in one transaction and names what they superseded, which the caller then removes from the
   index and the blobs and reports to `removed`. Until it does, those names stay in the `garbage` table.

After a kill, `recover` turns what was pending into garbage and returns all garbage.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.records import Memory, text_digest
from nnm_core.storage import journal_schema as schema
from nnm_core.storage.journal_reader import JournalReader
from nnm_core.storage.journal_records import Entry, Removal, StateRef, Write


class Journal(JournalReader):
    """Append-only versions of the memories of one namespace. Safe to use from several threads.

    Args:
        path: the database file, or None to keep everything in RAM.
        namespace: written into the records that come back.

    Raises:
        StorageError: the file cannot be opened, read or written, or is damaged.
        StoreMismatchError: a newer format.
    """

    # -- writing ------------------------------------------------------------------------------------------------

    def begin(self, memories: Sequence[Memory]) -> list[Entry]:
        """Insert new versions as pending, in order, in one transaction.

        Versions are counted here: `version`, `supersedes`, `namespace` and `digest` of the input are ignored.
        An id may occur several times; the last one wins.

        Returns:
            one entry for each memory, with its version and its fresh `point`.

        Raises:
            InvalidInputError: an empty id, text that is not valid Unicode, metadata that is not JSON. Nothing is
                written then.
        """
        rows = [(m, schema.encode_metadata(m.metadata, _checked(m).id)) for m in memories]
        with self._db.write() as cursor:
            return [self._insert(cursor, memory, metadata) for memory, metadata in rows]

    def _insert(self, cursor: sqlite3.Cursor, memory: Memory, metadata: str, *, tombstone: bool = False) -> Entry:
        row = cursor.execute("SELECT MAX(version) FROM versions WHERE id = ?", (memory.id,)).fetchone()
        live = cursor.execute(
            "SELECT version FROM versions WHERE id = ? AND status = ?", (memory.id, schema.LIVE)
        ).fetchone()
        memory = replace(
            memory,
            namespace=self.namespace,
            version=(row[0] or 0) + 1,
            supersedes=live[0] if live else None,
            digest=text_digest(memory.text),
        )
        # A random point, not one made of id and version: an id that is forgotten and added again must not meet
        # the rests of its former self.
        point = str(uuid.uuid4())
        status = schema.LIVE if tombstone else schema.PENDING
        cursor.execute(
            "INSERT INTO versions (id, version, status, tombstone, text, metadata, created, supersedes, digest, point)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(memory.id, memory.version, status, tombstone, memory.text),
                *(metadata, memory.created, memory.supersedes, memory.digest, point),
            ),
        )
        return Entry(memory=memory, point=point, tombstone=tombstone)

    def commit(self, writes: Sequence[Write]) -> Removal:
        """Make pending versions live, all in one transaction.

        Returns:
            what has to be removed from index and blobs now: superseded versions, and versions of this call that
            were forgotten meanwhile or lost against a later `begin` of the same id.
        """
        with self._db.write() as cursor:
            dropped = [point for write in writes for point in self._commit_one(cursor, write)]
            return self._discard(cursor, dropped)

    def _commit_one(self, cursor: sqlite3.Cursor, write: Write) -> list[str]:
        for state in write.states:
            _add_state(cursor, write.point, state)
        row = cursor.execute(
            "SELECT id, version FROM versions WHERE point = ? AND status = ?", (write.point, schema.PENDING)
        ).fetchone()
        if row is None:
            return [write.point]
        data, shape = schema.encode_vector(write.vector)
        memory_id, version = row
        live = cursor.execute(
            "SELECT version, point, tombstone FROM versions WHERE id = ? AND status = ?", (memory_id, schema.LIVE)
        ).fetchone()
        late = live is not None and live[0] > version
        if live is not None and not late:
            cursor.execute("UPDATE versions SET status = ? WHERE point = ?", (schema.SUPERSEDED, live[1]))
        cursor.execute(
            "UPDATE versions SET status = ?, tokens = ?, vector = ?, shape = ?, supersedes = ? WHERE point = ?",
            (
                *(schema.SUPERSEDED if late else schema.LIVE, write.tokens, data, shape),
                *(_previous(cursor, memory_id, version), write.point),
            ),
        )
        if late:
            return [write.point]
        return [live[1]] if live is not None else []

    def rederive(self, writes: Sequence[Write]) -> Removal:
        """Replace what was derived from live versions (another model has read them): vectors, tokens, states.

        Returns:
            the blobs of their former states.
        """
        with self._db.write() as cursor:
            former: list[str] = []
            for write in writes:
                former += [r[0] for r in cursor.execute("SELECT key FROM states WHERE point = ?", (write.point,))]
                data, shape = schema.encode_vector(write.vector)
                cursor.execute(
                    "UPDATE versions SET tokens = ?, vector = ?, shape = ? WHERE point = ?",
                    (write.tokens, data, shape, write.point),
                )
                cursor.execute("DELETE FROM states WHERE point = ?", (write.point,))
                for state in write.states:
                    _add_state(cursor, write.point, state)
            kept = {state.key for write in writes for state in write.states}
            return Removal((), tuple(dict.fromkeys(key for key in former if key not in kept)))

    def abort(self, points: Iterable[str]) -> Removal:
        """Give up pending versions. Returns what may already have been written for them."""
        with self._db.write() as cursor:
            given = list(points)
            cursor.executemany(
                "DELETE FROM versions WHERE status = ? AND point = ?", [(schema.PENDING, point) for point in given]
            )
            return self._discard(cursor, given)

    def delete(self, ids: Iterable[str]) -> Removal:
        """Add a tombstone version to each of `ids` that is live; others are passed over. The history stays."""
        with self._db.write() as cursor:
            points = []
            for memory_id in dict.fromkeys(ids):
                live = cursor.execute(
                    "SELECT point FROM versions WHERE id = ? AND status = ? AND tombstone = 0",
                    (memory_id, schema.LIVE),
                ).fetchone()
                if live is None:
                    continue
                # This also holds against an `add` that has begun and not ended: its version is the lower one.
                self._insert(cursor, Memory(memory_id, "", created=time.time()), "{}", tombstone=True)
                cursor.execute("UPDATE versions SET status = ? WHERE point = ?", (schema.SUPERSEDED, live[0]))
                points.append(live[0])
            return self._discard(cursor, points)

    def forget(self, ids: Iterable[str]) -> Removal:
        """Erase every version of `ids`, texts and vectors, from the file and its write-ahead log.

        Returns:
            all points and blobs that derive from them; their `erase` flag asks for the bytes to leave the disk.
        """
        with self._db.write() as cursor:
            points: list[str] = []
            for memory_id in dict.fromkeys(ids):
                points += [r[0] for r in cursor.execute("SELECT point FROM versions WHERE id = ?", (memory_id,))]
                cursor.execute("DELETE FROM versions WHERE id = ?", (memory_id,))
            removal = self._discard(cursor, points, erase=True)
        self._db.checkpoint()
        return removal

    def _discard(self, cursor: sqlite3.Cursor, points: Sequence[str], *, erase: bool = False) -> Removal:
        """Move points, and every state that derives from them, to the garbage; same transaction as the cause."""
        keys: list[str] = []
        for point in points:
            keys += [row[0] for row in cursor.execute("SELECT key FROM states WHERE point = ?", (point,))]
        keys = list(dict.fromkeys(keys))
        cursor.executemany("DELETE FROM states WHERE key = ?", [(key,) for key in keys])
        cursor.executemany(
            "INSERT INTO garbage VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET erase = MAX(erase, excluded.erase)",
            [("point", point, erase) for point in points] + [("blob", key, erase) for key in keys],
        )
        return Removal(tuple(points), tuple(keys), erase)

    def recover(self) -> Removal:
        """At opening: drop what a killed process left pending, and name everything that waits for removal."""
        with self._db.write() as cursor:
            pending = [r[0] for r in cursor.execute("SELECT point FROM versions WHERE status = ?", (schema.PENDING,))]
            cursor.execute("DELETE FROM versions WHERE status = ?", (schema.PENDING,))
            self._discard(cursor, pending)
            rows = cursor.execute("SELECT kind, name, erase FROM garbage").fetchall()
        names = {kind: tuple(name for k, name, _ in rows if k == kind) for kind in ("point", "blob")}
        return Removal(names["point"], names["blob"], any(erase for _, _, erase in rows))

    def removed(self, removal: Removal) -> None:
        """Tell the journal that `removal` has been carried out, in the index and in the blobs."""
        rows = [("point", name) for name in removal.points] + [("blob", name) for name in removal.blobs]
        if rows:
            with self._db.write() as cursor:
                cursor.executemany("DELETE FROM garbage WHERE kind = ? AND name = ?", rows)

    # -- states -------------------------------------------------------------------------------------------------

    def add_state(self, point: str, state: StateRef) -> bool:
        """Note a state that was stored after the commit.

        Returns:
            False if `point`, or one of the versions that the state derives from, is not live any more: the caller
            then deletes the blob.
        """
        with self._db.write() as cursor:
            alive = all(_is_live(cursor, needed) for needed in {point, *state.sources})
            if alive:
                _add_state(cursor, point, state)
            return alive

    def drop_states(self, keys: Iterable[str]) -> None:
        """Forget that these blobs exist (they were evicted or unreadable)."""
        with self._db.write() as cursor:
            cursor.executemany("DELETE FROM states WHERE key = ?", [(key,) for key in keys])


def _checked(memory: Memory) -> Memory:
    given: Any = memory.id
    if not isinstance(given, str) or not given:
        raise InvalidInputError(f"A memory's id must be a non-empty string, not {given!r}.")
    if not isinstance(memory.text, str):
        raise InvalidInputError(f"The text of memory {memory.id!r} must be a string.")
    try:
        memory.id.encode("utf-8")
        memory.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"Id or text of memory {memory.id!a} is not valid Unicode: {error.reason}.",
            hint="Read the file with the right encoding or with errors='replace'.",
        ) from error
    return memory


def _is_live(cursor: sqlite3.Cursor, point: str) -> bool:
    sql = "SELECT 1 FROM versions WHERE point = ? AND status = ? AND tombstone = 0"
    return cursor.execute(sql, (point, schema.LIVE)).fetchone() is not None


def _previous(cursor: sqlite3.Cursor, memory_id: str, version: int) -> int | None:
    row = cursor.execute(
        "SELECT MAX(version) FROM versions WHERE id = ? AND version < ? AND status != ?",
        (memory_id, version, schema.PENDING),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def _add_state(cursor: sqlite3.Cursor, point: str, state: StateRef) -> None:
    cursor.execute("DELETE FROM states WHERE key = ?", (state.key,))  # a former one may have had other sources
    rows = [(state.key, source, state.left_context, source == point) for source in {point, *state.sources}]
    cursor.executemany("INSERT INTO states VALUES (?, ?, ?, ?)", rows)
    cursor.execute("DELETE FROM garbage WHERE kind = 'blob' AND name = ?", (state.key,))
