"""A disk that is full, and one that cannot be written: real ones, mounted in RAM where the system allows it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM, StorageError

FIRST = "The spare key hangs behind the door."
MEGABYTES = 256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not allow mounts")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def open_store(path: Path) -> NNM:
    return NNM.open(tiny_reader(), path, system=None)


def test_a_full_disk_is_named_and_harms_nothing_stored_before(small_disk: Path) -> None:
    store = small_disk / "memory"
    with open_store(store) as nnm:
        nnm.add(FIRST, ids="kept")
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))
        texts = [f"{n} " + "word " * 60 for n in range(8)]
        with pytest.raises(StorageError, match=r"(?i)disk|space"):
            nnm.add(texts, ids=[f"m{n}" for n in range(8)])
        filler.unlink()
        assert nnm.stats()["memories"] == 1
    with open_store(store) as nnm:
        assert nnm.get("kept")[0].text == FIRST
        assert nnm.search("spare key", k=1)[0].memory.id == "kept"
        assert nnm.answer("Where?", memories=["kept"], max_tokens=2).receipt.tier == "exact"
        assert nnm._collection.blobs.keys() == nnm._collection.journal.state_keys()


def test_a_read_only_folder_is_named(small_disk: Path) -> None:
    store = small_disk / "memory"
    with open_store(store) as nnm:
        nnm.add(FIRST, ids="kept")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"(?i)read-only|cannot"):
        open_store(store)
    with pytest.raises(StorageError, match=r"(?i)read-only|cannot"):
        open_store(small_disk / "another")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with open_store(store) as nnm:
        assert nnm.get("kept")[0].text == FIRST


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("not a folder")
    with pytest.raises(StorageError, match="folder"):
        open_store(tmp_path / "memory")
    assert (tmp_path / "memory").read_text() == "not a folder"
