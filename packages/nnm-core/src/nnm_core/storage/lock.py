"""One writer per namespace, by a lock of the operating system: it ends with its process, so it is never stale."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from nnm_core.errors import StoreLockedError
from nnm_core.storage.paths import make_private_directory, storage_error


class NamespaceLock:
    """The exclusive right to write in one namespace directory.

    The lock is on the file `lock`; `lock.holder` beside it only tells people who has it (the lock file itself is
    truncated by whoever tries to take it).
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._note = directory / "lock.holder"
        # thread_local=False: the engine may be closed from another thread than the one that opened it.
        self._lock = FileLock(self._path, timeout=0, thread_local=False, mode=0o600)

    def acquire(self) -> NamespaceLock:
        """Take the lock at once.

        Raises:
            StoreLockedError: someone else has it; the message names process and host.
            StorageError: the folder cannot be written.
        """
        make_private_directory(self._path.parent)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreLockedError(
                f"The store in {self._path.parent} is open for writing in {self._holder()}.",
                hint="Close it there first, use another namespace, or keep several writers on a Qdrant server.",
            ) from error
        except OSError as error:
            raise storage_error(f"Cannot lock {self._path}", error) from error
        try:
            self._note.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        except OSError as error:
            self._lock.release()
            raise storage_error(f"Cannot write {self._note}", error) from error
        return self

    def release(self) -> None:
        """Give the lock back; without effect if it is not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._note.unlink(missing_ok=True)
            self._lock.release()

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def _holder(self) -> str:
        try:
            note = json.loads(self._note.read_text())
            return f"process {note['pid']} on {note['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def __enter__(self) -> NamespaceLock:
        return self if self.held else self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
