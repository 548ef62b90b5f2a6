from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from tests.core.storage.support import python

from nnm_core.errors import StorageError, StoreLockedError
from nnm_core.storage.lock import NamespaceLock

_HOLD = """
import sys, time
from pathlib import Path
from nnm_core.storage.lock import NamespaceLock
lock = NamespaceLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_same_process_cannot_open_twice(tmp_path: Path) -> None:
    with NamespaceLock(tmp_path / "a"):
        with pytest.raises(StoreLockedError, match=rf"process {os.getpid()} on {socket.gethostname()}"):
            NamespaceLock(tmp_path / "a").acquire()
        with NamespaceLock(tmp_path / "b"):  # another namespace is free
            pass


def test_released_means_free(tmp_path: Path) -> None:
    lock = NamespaceLock(tmp_path).acquire()
    lock.release()
    lock.release()
    assert not lock.held
    with NamespaceLock(tmp_path) as again:
        assert again.held


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    child = python(_HOLD, str(tmp_path), stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "held\n"
        for _ in range(2):  # trying must not wipe the holder's name
            with pytest.raises(StoreLockedError, match=f"process {child.pid} on"):
                NamespaceLock(tmp_path).acquire()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with NamespaceLock(tmp_path):
        pass


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        NamespaceLock(tmp_path / "file" / "ns").acquire()
