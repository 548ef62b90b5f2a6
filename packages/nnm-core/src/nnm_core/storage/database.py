"""A small, guarded SQLite connection: durable, erasing, safe for threads, with errors that say what to do."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnm_core.errors import EngineClosedError, InvalidInputError, StorageError, StoreMismatchError
from nnm_core.storage import journal_schema as schema
from nnm_core.storage.paths import make_private_directory, storage_error


class Database:
    """One connection, one lock. `path=None` keeps it in RAM.

    Raises:
        StorageError: the file cannot be opened or is not a database.
        StoreMismatchError: the file has a newer format.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.RLock()
        self._closed = False
        self._path = path
        if path is not None:
            _make_private_file(path)
        with self._guard():
            # Transactions are begun by hand (isolation_level=None), one at a time, under the lock.
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path, check_same_thread=False, isolation_level=None
            )
        try:
            with self._guard():
                self._set_up()
        except StorageError:
            self._connection.close()
            raise

    def _set_up(self) -> None:
        run = self._connection.execute
        version = run("PRAGMA user_version").fetchone()[0]
        owner = run("PRAGMA application_id").fetchone()[0]
        if version > schema.FORMAT_VERSION:
            raise StoreMismatchError(
                f"{self._path} has format {version}, this program knows up to {schema.FORMAT_VERSION}.",
                hint="Upgrade nnm-core.",
            )
        run("PRAGMA secure_delete = ON")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        # Intermediate results may hold text: they must not reach the disk outside the database.
        run("PRAGMA temp_store = MEMORY")
        if version == 0:
            if run("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                raise self._foreign()
            self._connection.executescript(
                f"BEGIN;{schema.SCHEMA}PRAGMA application_id = {schema.APPLICATION_ID};"
                f"PRAGMA user_version = {schema.FORMAT_VERSION};COMMIT;"
            )
        elif owner != schema.APPLICATION_ID:
            raise self._foreign()

    def _foreign(self) -> StorageError:
        return StorageError(f"{self._path} is a database, but not a journal of NNM.", hint="Choose another path.")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Cursor]:
        """A transaction: all of the block or nothing of it."""
        with self._lock, self._guard():
            cursor = self._open().cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock, self._guard():
            return self._open().execute(sql, tuple(values)).fetchall()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file and cut the log to nothing."""
        with self._lock, self._guard():
            busy = self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StorageError(
                f"The write-ahead log of {self._path} could not be emptied: another process reads the file.",
                hint="Close the other reader and forget again.",
            )

    def get_setting(self, key: str, default: Any) -> Any:
        """See `Journal.get_setting`."""
        for value, is_json in self.read("SELECT value, json FROM settings WHERE key = ?", (key,)):
            return json.loads(value) if is_json else bytes(value)
        return default

    def set_setting(self, key: str, value: Any) -> None:
        """See `Journal.set_setting`."""
        raw = isinstance(value, bytes | bytearray | memoryview)
        try:
            stored = bytes(value) if raw else json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"The setting {key!r} is neither bytes nor JSON: {error}.") from error
        with self.write() as cursor:
            cursor.execute("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", (key, stored, not raw))

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock, self._guard():
            if not self._closed:
                self._closed = True
                self._connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise EngineClosedError("The journal is closed.", hint="Open the store again.")
        return self._connection

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"The journal {self._path or 'in RAM'} failed: {error}.", hint=_hint(error)) from error


def _hint(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return "The disk is full: free some space and try again; what was stored before is intact."
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return "The folder cannot be written: check its owner and whether the disk is mounted read-only."
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "The file is damaged: restore it from a backup, or try `sqlite3 journal.db .recover`."
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "Another program is using the file: close it and try again."
    return "Check the disk and the folder's rights."


def _make_private_file(path: Path) -> None:
    # SQLite gives its log files the rights of the database, so it is enough to create that one for its owner only.
    make_private_directory(path.parent)
    if path.exists():
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise storage_error(f"Cannot create {path}", error) from error
