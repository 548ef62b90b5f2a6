from __future__ import annotations

import logging
import os
import stat
import threading
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors
import torch

from nnm_core.errors import EngineClosedError, InvalidInputError, StorageError
from nnm_core.storage.blobs import BlobStore, open_blobs

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.fixture(params=["disk", "remote", "ram"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    places = {"disk": str(tmp_path / "states"), "remote": f"memory://{uuid.uuid4().hex}/states", "ram": None}
    store = open_blobs(places[request.param])
    yield store
    store.close()


def tensors(seed: int = 0, size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ["layer.10.key", "layer.2.key", "layer.2.value", "a"]
    return {name: torch.randn(size // 4, generator=generator) for name in names}


def files(root: Path, suffix: str = ".safetensors") -> list[Path]:
    return sorted(root.rglob(f"*{suffix}"))


def test_tensors_come_back_bit_for_bit_in_order(blobs: BlobStore) -> None:
    given = {f"{9 - n}": (torch.randn(2, 3, n + 1) * 3).to(dtype) for n, dtype in enumerate(DTYPES)}
    given["empty"] = torch.zeros(0, 5)
    given["scalar"] = torch.tensor(3.5)
    given["strided"] = torch.arange(12).reshape(3, 4).T[1:, ::2]
    size = blobs.put("k", given, {"fingerprint": "é ☃", "n": "1"})
    assert size == blobs.nbytes() > 0
    blob = blobs.get("k")
    assert blob is not None
    assert list(blob.tensors) == list(given)
    assert blob.manifest == {"fingerprint": "é ☃", "n": "1"}
    for name, tensor in given.items():
        assert blob.tensors[name].dtype == tensor.dtype
        assert torch.equal(blob.tensors[name], tensor)


def test_replace_delete_and_list(blobs: BlobStore) -> None:
    blobs.put("one", tensors(1), {})
    blobs.put("Two/../é", tensors(2), {})
    blobs.put("one", {"x": torch.ones(2)}, {"v": "2"})
    assert blobs.keys() == {"one", "Two/../é"}
    found = blobs.get("one")
    assert found is not None
    assert list(found.tensors) == ["x"]
    assert found.manifest == {"v": "2"}
    blobs.delete(["one", "nobody"])
    assert blobs.get("one") is None
    assert blobs.keys() == {"Two/../é"}
    blobs.delete(["Two/../é"])
    assert blobs.nbytes() == 0


def test_a_manifest_that_differs_is_a_miss(blobs: BlobStore, caplog: pytest.LogCaptureFixture) -> None:
    blobs.put("k", tensors(), {"fingerprint": "model-a"})
    assert blobs.get("k", expect={"fingerprint": "model-a"}) is not None
    with caplog.at_level(logging.WARNING):
        assert blobs.get("k", expect={"fingerprint": "model-b"}) is None
        assert blobs.get("k", expect={"other": "x"}) is None
    assert "model-a" in caplog.text
    assert blobs.get("k") is not None  # the blob itself is fine


def test_what_was_given_can_be_changed_without_changing_what_is_stored(blobs: BlobStore) -> None:
    given = tensors()
    blobs.put("k", given, {})
    given["a"].zero_()
    found = blobs.get("k")
    assert found is not None
    assert torch.equal(found.tensors["a"], tensors()["a"])


def test_readers_share_what_lies_in_ram() -> None:
    """Many answers at once hold one copy of a state."""
    blobs = open_blobs(None)
    blobs.put("k", tensors(), {})
    first, second = blobs.get("k"), blobs.get("k")
    assert first is not None and second is not None
    assert first.tensors["a"].data_ptr() == second.tensors["a"].data_ptr()


def test_the_tensors_of_a_file_lie_one_behind_the_other(tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path)
    blobs.put("k", {name: torch.full((4, 16), value) for name, value in (("x", 1.0), ("y", 2.0))}, {})
    found = blobs.get("k")
    assert found is not None
    x, y = found.tensors["x"], found.tensors["y"]
    assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert y.data_ptr() - x.data_ptr() == 4 * 16 * 4


@pytest.mark.parametrize(
    ("key", "manifest", "given"),
    [
        ("", {}, tensors()),
        (None, {}, tensors()),
        ("k", {"n": 1}, tensors()),
        ("k", {"sha256": "x"}, tensors()),
        ("k", {}, {}),
    ],
)
def test_bad_input_is_refused(
    blobs: BlobStore, key: str, manifest: dict[str, str], given: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(InvalidInputError):
        blobs.put(key, given, manifest)
    assert blobs.keys() == set()


def test_use_after_close(blobs: BlobStore) -> None:
    blobs.close()
    blobs.close()
    with pytest.raises(EngineClosedError):
        blobs.get("k")


# -- quota ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "remote", "ram"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    """Room for three blobs of 20 kB and not for four."""
    places = {"disk": str(tmp_path / "states"), "remote": f"memory://{uuid.uuid4().hex}/states", "ram": None}
    store = open_blobs(places[request.param], quota=70_000)
    yield store
    store.close()


def test_the_least_recently_used_goes_first(small: BlobStore) -> None:
    for key in "abc":
        small.put(key, tensors(size=5000), {})
    assert small.get("a") is not None
    small.put("d", tensors(size=5000), {})
    assert small.keys() == {"a", "c", "d"}
    assert small.nbytes() <= 70_000
    small.put("a", tensors(size=5000), {})  # replacing needs no more room
    assert small.keys() == {"a", "c", "d"}


def test_pinned_blobs_stay(small: BlobStore) -> None:
    for key in "abc":
        small.put(key, tensors(size=5000), {})
    small.pin(["a"])
    small.pin(["a", "b"])
    small.put("d", tensors(size=5000), {})
    assert small.keys() == {"a", "b", "d"}
    small.unpin(["a", "b"])
    small.put("e", tensors(size=5000), {})
    assert small.keys() == {"a", "d", "e"}  # `a` is still pinned once
    small.unpin(["a"])
    small.put("f", tensors(size=5000), {})
    assert "a" not in small.keys()  # noqa: SIM118 - a method of the store, not of a dict


def test_more_than_the_quota_is_not_kept(small: BlobStore, caplog: pytest.LogCaptureFixture) -> None:
    small.put("a", tensors(size=5000), {})
    with caplog.at_level(logging.WARNING):
        assert small.put("big", tensors(size=50_000), {}) == 0
    assert "quota" in caplog.text
    assert small.keys() == {"a"}
    with pytest.raises(InvalidInputError):
        open_blobs(None, quota=-1)


def test_order_of_use_survives_reopening(tmp_path: Path) -> None:
    first = open_blobs(tmp_path)
    for key in "abc":
        first.put(key, tensors(size=5000), {})
    assert first.get("a") is not None
    first.close()
    second = open_blobs(tmp_path, quota=45_000)
    assert second.keys() == {"a", "c"}
    assert len(files(tmp_path)) == 2


# -- files ------------------------------------------------------------------------------------------------------


def test_reopening_finds_everything(tmp_path: Path) -> None:
    first = open_blobs(tmp_path)
    first.put("Key/é", tensors(), {"m": "1"})
    size = first.nbytes()
    first.close()
    second = open_blobs(tmp_path)
    assert second.keys() == {"Key/é"}
    assert second.nbytes() == size == files(tmp_path)[0].stat().st_size
    blob = second.get("Key/é", expect={"m": "1"})
    assert blob is not None
    assert torch.equal(blob.tensors["a"], tensors()["a"])


def test_a_local_file_is_plain_safetensors_and_is_mapped_not_copied(tmp_path: Path) -> None:
    store = open_blobs(tmp_path)
    store.put("k", tensors(size=400_000), {"m": "1"})
    (path,) = files(tmp_path)
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata()["m"] == "1"
        assert len(opened.metadata()["sha256-tree"]) == 64
    blob = store.get("k")
    assert blob is not None
    # All tensors are views of one mapping, laid out one after the other as they were put.
    pointers = [t.data_ptr() for t in blob.tensors.values()]
    assert [b - a for a, b in pairwise(pointers)] == [400_000] * 3
    assert pointers[0] % 64 == 0
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text()


def test_a_mapped_blob_outlives_its_file(tmp_path: Path) -> None:
    store = open_blobs(tmp_path)
    store.put("k", tensors(size=400_000), {})
    blob = store.get("k")
    assert blob is not None
    store.put("k", tensors(1, size=400_000), {})
    store.delete(["k"])
    store.close()
    assert all(torch.equal(blob.tensors[name], value) for name, value in tensors(size=400_000).items())


def test_files_are_private_and_sharded(tmp_path: Path) -> None:
    store = open_blobs(tmp_path / "states", fsync=True)
    for n in range(20):
        store.put(f"k{n}", tensors(), {})
    assert stat.S_IMODE((tmp_path / "states").stat().st_mode) == 0o700
    for path in files(tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert len(path.parent.name) == 2
    assert len({path.parent for path in files(tmp_path)}) > 5


def flip(path: Path, where: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[where] ^= 0x10
    path.write_bytes(raw)


def damage_everywhere(path: Path) -> Iterator[bytes]:
    whole = path.read_bytes()
    yield b""
    yield b"\x00" * len(whole)
    yield b"\xff" * len(whole)
    yield whole + b"\x00"
    for cut in (1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        yield whole[:cut]
    for where in [*range(0, min(len(whole), 900), 7), len(whole) - 1, len(whole) // 2]:
        raw = bytearray(whole)
        raw[where] ^= 0x01
        yield bytes(raw)


def test_any_damage_is_a_miss_and_never_a_wrong_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given, manifest = tensors(), {"fingerprint": "f", "left": "l"}
    maker = open_blobs(tmp_path)
    maker.put("k", given, manifest)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for raw in list(damage_everywhere(path)):
        path.write_bytes(raw)
        store = open_blobs(tmp_path)
        blob = store.get("k", expect=manifest)
        if blob is not None:
            # Some bits mean nothing: the spaces that fill the header.
            assert blob.manifest == manifest
            assert list(blob.tensors) == list(given)
            assert all(torch.equal(blob.tensors[name], value) for name, value in given.items())
        else:
            assert store.get("k") is None
            assert store.keys() == set()
            assert files(tmp_path) == []  # moved out of the way
        path.write_bytes(whole)
    assert "damaged" in caplog.text
    again = open_blobs(tmp_path)
    assert again.get("k", expect=manifest) is not None
    again.delete(["k"])
    assert files(tmp_path, ".damaged") == []  # forgetting takes the damaged copy as well


def test_damage_after_the_first_load_is_found(tmp_path: Path) -> None:
    store = open_blobs(tmp_path)
    store.put("k", tensors(), {})
    assert store.get("k") is not None
    (path,) = files(tmp_path)
    status = path.stat()
    flip(path, status.st_size - 3)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert store.get("k") is None


def test_the_checksum_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnm_core.storage import blob_format

    calls: list[int] = []
    verify = blob_format.verify

    def counted(raw: memoryview) -> dict[str, str]:
        calls.append(len(raw))
        return verify(raw)

    monkeypatch.setattr(blob_format, "verify", counted)
    store = open_blobs(tmp_path)
    store.put("k", tensors(), {})
    for _ in range(3):
        assert store.get("k") is not None
    assert len(calls) == 1


def test_a_file_that_went_away_is_a_miss(tmp_path: Path) -> None:
    store = open_blobs(tmp_path)
    store.put("k", tensors(), {})
    files(tmp_path)[0].unlink()
    assert store.get("k") is None
    assert store.nbytes() == 0


def test_a_killed_writers_rest_is_removed_and_never_seen(tmp_path: Path) -> None:
    store = open_blobs(tmp_path)
    store.put("k", tensors(), {})
    rest = files(tmp_path)[0].with_name("abc.partial")
    rest.write_bytes(b"half")
    assert open_blobs(tmp_path).keys() == {"k"}
    assert not rest.exists()


def test_a_damaged_remote_object_is_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    import fsspec

    url = f"memory://{uuid.uuid4().hex}/states"
    store = open_blobs(url)
    store.put("k", tensors(), {})
    fs = fsspec.filesystem("memory")
    (path,) = (p for p in fs.find(url.removeprefix("memory:/")) if p.endswith(".safetensors"))
    fs.pipe_file(path, fs.cat_file(path)[:-5])
    assert store.get("k") is None
    assert store.keys() == set()
    assert "damaged" in caplog.text


def test_an_unknown_protocol_is_a_clear_error() -> None:
    with pytest.raises(StorageError, match="no-such"):
        open_blobs("no-such://bucket/x")


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = open_blobs(tmp_path, quota=200_000)
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for n in range(40):
                key = f"k{n % 7}"
                store.put(key, tensors(n % 7, size=4000), {"seed": str(n % 7)})
                blob = store.get(f"k{(n + name) % 7}")
                if blob is not None:
                    expected = tensors(int(blob.manifest["seed"]), size=4000)
                    assert all(torch.equal(blob.tensors[key], value) for key, value in expected.items())
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.nbytes() == sum(path.stat().st_size for path in files(tmp_path))
