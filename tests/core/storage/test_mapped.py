from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nnm_core.errors import StorageError
from nnm_core.states.transfer import _fill
from nnm_core.storage import mapped
from nnm_core.storage.blobs import open_blobs
from nnm_core.storage.mapped import map_file, read_into

PIECE = 4 * 2**20
# Several pieces, the last of which is not full.
LARGE = 5 * PIECE + 1234

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system has no preadv")


def noise(nbytes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write(path: Path, data: torch.Tensor) -> torch.Tensor:
    path.write_bytes(data.numpy().tobytes())
    return map_file(path, data.numel())


def blank(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.nbytes, dtype=torch.uint8)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


class Preadv:
    """Stands in for `os.preadv`; knows which threads and how many bytes were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, read: Callable[..., int] | None = None) -> None:
        self.threads: set[int] = set()
        self.nbytes = 0
        self._read = read or os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        self.threads.add(threading.get_ident())
        count = self._read(descriptor, buffers, offset)
        self.nbytes += count
        return count


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("start", [0, 8, 4096, PIECE - 8])
def test_views_have_the_bytes_of_the_file(tmp_path: Path, dtype: torch.dtype, start: int) -> None:
    data = noise(LARGE)
    view = write(tmp_path / "f", data)[start : start + 3 * PIECE + 40].view(dtype)
    target = blank(view)
    assert read_into(view, target)
    assert torch.equal(target, data[start : start + view.nbytes])


def test_views_at_odd_offsets_and_of_any_shape(tmp_path: Path) -> None:
    data = noise(LARGE)
    whole = write(tmp_path / "f", data)
    for first, last in ((1, 2), (0, LARGE), (PIECE - 1, LARGE - 3), (LARGE - 1, LARGE), (7, 7 + PIECE)):
        target = blank(whole[first:last])
        assert read_into(whole[first:last], target)
        assert torch.equal(target, data[first:last])
    shaped = whole[64 : 64 + 2 * 3 * 5 * 4].view(torch.float32).view(2, 3, 5)
    like = torch.zeros_like(shaped)
    assert read_into(shaped[1], like[1])
    assert torch.equal(raw(like[1]), raw(shaped[1]))
    assert not like[0].any()
    scalar = torch.zeros(())
    assert read_into(shaped[1, 2, 3], scalar)
    assert torch.equal(raw(scalar), raw(shaped[1, 2, 3]))


def test_large_views_are_read_by_other_threads_and_small_ones_by_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = write(tmp_path / "f", noise(LARGE)), Preadv(monkeypatch)
    assert read_into(whole[: PIECE // 2], blank(whole[: PIECE // 2]))
    assert calls.threads == {threading.get_ident()}
    calls.threads.clear()
    assert read_into(whole, blank(whole))
    assert calls.threads and threading.get_ident() not in calls.threads


def test_reads_that_stop_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = noise(LARGE), os.preadv
    view, target = write(tmp_path / "f", data)[3:], blank(data[3:])
    calls = Preadv(monkeypatch, lambda file, buffers, at: read(file, [buffers[0][: PIECE // 3]], at))
    assert read_into(view, target)
    assert torch.equal(target, data[3:])
    assert calls.nbytes == view.nbytes


@pytest.mark.parametrize("change", ["replaced", "removed", "written", "cut", "ended"])
def test_a_file_that_is_another_one_by_now_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path, data, other = tmp_path / "f", noise(LARGE), noise(LARGE, seed=1)
    whole = write(path, data)
    status = path.stat()
    if change == "replaced":
        (tmp_path / "g").write_bytes(other.numpy().tobytes())
        os.utime(tmp_path / "g", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "g").replace(path)
    elif change == "removed":
        path.unlink()
    elif change == "written":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    elif change == "cut":
        os.truncate(path, LARGE + 1)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        Preadv(monkeypatch, lambda *_: 0)
    target = blank(data)
    assert not read_into(whole, target)
    _fill(target, whole)  # copies what was mapped
    assert torch.equal(target, data)


def test_what_is_no_contiguous_view_of_a_mapping_is_not_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "f", noise(4096))
    strided = whole.view(64, 64)[:, :3]
    for tensor in (torch.arange(10), strided, whole.clone(), whole[:0], torch.empty(4, device="meta")):
        target = blank(tensor)
        assert not read_into(tensor, target)
        assert not target.any()
    like = torch.zeros_like(strided)
    _fill(like, strided)
    assert torch.equal(like, strided)


def test_a_system_without_preadv_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "f", noise(4096))
    monkeypatch.delattr(os, "preadv")
    assert not read_into(whole, blank(whole))


def test_a_failing_disk_is_an_error_once_all_threads_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read, begin = write(tmp_path / "f", noise(LARGE)), os.preadv, threading.Event()

    def fails_first(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 0:
            begin.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        begin.wait(10)  # the others end after it
        return read(descriptor, buffers, offset)

    calls = Preadv(monkeypatch, fails_first)
    with pytest.raises(StorageError, match="Cannot read"):
        read_into(whole, blank(whole))
    assert calls.nbytes == LARGE - PIECE


def test_a_mapping_is_forgotten_with_its_last_tensor(tmp_path: Path) -> None:
    gc.collect()
    before = len(mapped._sources)
    views = [write(tmp_path / f"{n}", noise(5000, seed=n))[n:] for n in range(20)]
    assert len(mapped._sources) == before + 20
    target = blank(views[7])
    assert read_into(views[7], target)
    assert torch.equal(target, noise(5000, seed=7)[7:])
    views[10:] = []
    assert len(mapped._sources) == before + 10
    views.clear()
    assert len(mapped._sources) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux lists open files there")
def test_no_file_stays_open(tmp_path: Path) -> None:
    def opened() -> int:
        return sum(str(tmp_path) in os.path.realpath(path) for path in Path("/proc/self/fd").iterdir())

    views = [write(tmp_path / f"{n}", noise(5000, seed=n)) for n in range(20)]
    assert all(read_into(view, blank(view)) for view in views)
    assert opened() == 0


def test_writing_never_reaches_the_file(tmp_path: Path) -> None:
    data = noise(9000)
    whole = write(tmp_path / "f", data)
    whole[5:8000].zero_()
    assert not whole[5:8000].any()
    del whole
    assert (tmp_path / "f").read_bytes() == data.numpy().tobytes()


def test_a_file_that_is_not_there_or_too_short_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "f", 10)
    (tmp_path / "f").write_bytes(b"short")
    with pytest.raises(RuntimeError):
        map_file(tmp_path / "f", 10)


def test_threads_read_at_once(tmp_path: Path) -> None:
    given = [noise(2 * PIECE + 77 * n, seed=n) for n in range(4)]
    views = [write(tmp_path / f"{n}", data) for n, data in enumerate(given)]

    def read(n: int) -> bool:
        view = views[n % 4][n:]
        target = blank(view)
        return read_into(view, target) and torch.equal(target, given[n % 4][n:])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(32)))


def test_the_tensors_of_a_local_store_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"x": torch.randn(2, 3, 40).bfloat16(), "y": torch.randn(2 * PIECE), "z": noise(333).view(3, 111)}
    blobs = open_blobs(tmp_path)
    blobs.put("k", given, {})
    blobs.get("k")
    found = blobs.get("k")  # each notes the time of use, and the file stays the same one
    assert found is not None
    calls = Preadv(monkeypatch)
    for name, tensor in given.items():
        target = torch.zeros_like(tensor)
        _fill(target, found.tensors[name])
        assert torch.equal(target, tensor)
    assert calls.nbytes == sum(tensor.nbytes for tensor in given.values())
