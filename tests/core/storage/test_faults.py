"""Full disks, read-only folders and failing system calls: a clear error, and what was stored before is intact.

Where the kernel lets an ordinary user make a mount namespace, the disk is really full and really read-only.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.storage.support import DIM, child_environment, point, uid

from nnm_core.errors import StorageError
from nnm_core.storage import paths
from nnm_core.storage.blobs import open_blobs
from nnm_core.storage.index import open_index

_FILL = """
import random, sys
from pathlib import Path
import torch
from nnm_core.errors import StorageError
from nnm_core.storage import edge
from nnm_core.storage.index import Point
from nnm_core.records import Memory
from nnm_core.storage.blobs import open_blobs
from nnm_core.storage.index import open_index
from nnm_core.storage.journal import Journal, Write
from tests.core.storage.support import DIM, point, uid

edge._RESERVE = 8 * 2**20  # of a disk of 40 MB
root = Path(sys.argv[1]) / "ns"
def stores():
    return Journal(root / "journal.db"), open_index(root / "index", namespace="n", dim=DIM), open_blobs(root / "states")

def until_full(step, limit=20_000):
    for number in range(limit):
        try:
            step(number)
        except StorageError as error:
            assert "full" in str(error), error
            return number
    raise SystemExit("the disk never filled up")

journal, index, blobs = stores()
def add_point(n):
    pad = random.randbytes(100_000).hex()  # payloads are compressed: this one cannot be
    p = point(n, {"pad": pad})
    index.upsert([Point(p.id, p.dense, p.sparse, None, p.payload)])
def add_memory(n):
    (entry,) = journal.begin([Memory(f"m{n}", f"text {n} " + "y" * 20_000)])
    journal.commit([Write(entry.point)])
for n in range(5):
    add_memory(n)
points = until_full(add_point)
states = until_full(lambda n: blobs.put(f"k{n}", {"a": torch.full((50_000,), float(n))}, {"n": str(n)}))
memories = 5 + until_full(lambda n: add_memory(n + 5))
assert min(points, states) > 3, (points, states, memories)
def check():
    assert journal.live_count() == memories
    for n in range(memories):
        assert journal.get([f"m{n}"])[0].memory.text.startswith(f"text {n} ")
    assert {uid(n) for n in range(points)} <= set(index.ids())
    assert blobs.keys() == {f"k{n}" for n in range(states)}
    assert all(blobs.get(f"k{n}").tensors["a"][7] == n for n in range(states))
check()
blobs.delete([f"k{n}" for n in range(3, states)])  # make room
index.delete([uid(n) for n in range(points // 2, points)])
states, points = 3, points // 2
for n in range(3):
    blobs.put(f"k{states}", {"a": torch.full((10,), float(states))}, {}); states += 1
add_memory(memories); memories += 1
journal.close(); index.close(); blobs.close()
edge._RESERVE = 2**20  # the journal has grown into it
journal, index, blobs = stores()
check()
print("INTACT", points, states, memories)
"""

_READ_ONLY = """
import sys
from pathlib import Path
from nnm_core.errors import IndexDamagedError, StorageError
from nnm_core.storage.blobs import open_blobs
from nnm_core.storage.index import open_index
from nnm_core.storage.journal import Journal
from nnm_core.storage.lock import NamespaceLock
from tests.core.storage.support import DIM
root = Path(sys.argv[1])
for name, opening in {
    "lock": lambda: NamespaceLock(root / "ns").acquire(),
    "new journal": lambda: Journal(root / "other" / "journal.db"),
    "old journal": lambda: Journal(root / "ns" / "journal.db").set_setting("a", 1),
    "new index": lambda: open_index(root / "other" / "index", namespace="n", dim=DIM),
    "new states": lambda: open_blobs(root / "other" / "states"),
}.items():
    try:
        opening()
    except StorageError as error:
        assert "read-only" in error.hint and not isinstance(error, IndexDamagedError), (name, error, error.hint)
    else:
        raise SystemExit(f"{name} could be written")
print("REFUSED")
"""


def in_mount(tmp_path: Path, setup: str, script: str) -> str:
    """Run a script in a mount namespace of its own, or skip where that is not allowed."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux and unshare")
    mount = tmp_path / "mount"
    mount.mkdir(exist_ok=True)
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*probe, f"mount -t tmpfs tmpfs {mount}"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    (tmp_path / "script.py").write_text(script)
    command = f"{setup.format(mount=mount)} && exec {sys.executable} {tmp_path / 'script.py'} {mount}"
    ended = subprocess.run([*probe, command], capture_output=True, text=True, env=child_environment(), check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_really_full_disk(tmp_path: Path) -> None:
    assert "INTACT" in in_mount(tmp_path, "mount -t tmpfs -o size=40m tmpfs {mount}", _FILL)


def test_a_really_read_only_disk(tmp_path: Path) -> None:
    from nnm_core.storage.journal import Journal

    Journal(tmp_path / "mount" / "ns" / "journal.db").close()
    setup = "mount --bind {mount} {mount} && mount -o remount,bind,ro {mount}"
    assert "REFUSED" in in_mount(tmp_path, setup, _READ_ONLY)


def test_a_write_that_fails_halfway_leaves_the_old_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_blobs(tmp_path)
    store.put("k", {"a": torch.ones(1000)}, {"v": "old"})
    write = os.write
    calls = 0

    def short_then_full(descriptor: int, data: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:100])  # a short write is not an error

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(StorageError, match="disk is full"):
        store.put("k", {"a": torch.zeros(1000)}, {"v": "new"})
    monkeypatch.undo()
    blob = store.get("k", expect={"v": "old"})
    assert blob is not None
    assert torch.equal(blob.tensors["a"], torch.ones(1000))
    assert list(tmp_path.rglob("*.partial")) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    store = open_blobs(tmp_path)
    store.put("k", {"a": torch.arange(5000)}, {})
    blob = store.get("k")
    assert blob is not None
    assert torch.equal(blob.tensors["a"], torch.arange(5000))


def test_the_index_stops_before_the_disk_is_full(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(fast_path / "index", namespace="n", dim=DIM, token_dim=4)
    index.upsert([point(1)])
    usage = shutil.disk_usage(fast_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(StorageError, match="disk is full"):
        index.upsert([point(2)])
    with pytest.raises(StorageError, match="disk is full"):
        index.optimize()
    with pytest.raises(StorageError, match="disk is full"):
        open_index(fast_path / "other", namespace="n", dim=DIM)
    assert list(index.ids()) == [uid(1)]
    index.delete([uid(1)])  # making room is allowed
    monkeypatch.undo()
    index.upsert([point(2)])
    assert list(index.ids()) == [uid(2)]
    index.close()


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOSPC, "full"), (errno.EROFS, "read-only"), (errno.EIO, "healthy")]
)
def test_hints_fit_the_error(number: int, word: str) -> None:
    error = paths.storage_error("Cannot write x", OSError(number, os.strerror(number)))
    assert word in error.hint
    assert os.strerror(number) in str(error)
