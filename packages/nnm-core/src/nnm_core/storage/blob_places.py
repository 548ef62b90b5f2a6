"""Where states lie: a local directory (mapped files), anything that fsspec reaches, or RAM."""

from __future__ import annotations

import logging
import mmap
import os
import time
import uuid
from collections.abc import Mapping
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import safetensors
import safetensors.torch
import torch

from nnm_core.errors import InvalidInputError, StorageError
from nnm_core.storage import blob_format
from nnm_core.storage.blobs import Blob, DamagedBlob
from nnm_core.storage.mapped import map_file
from nnm_core.storage.paths import encode_name, fsync_directory, make_private_directory, storage_error

logger = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
_PARTIAL = ".partial"
_DAMAGED = ".damaged"
_HEADER_GUESS = 4096
_ALIGN = 64
_NOT_A_BLOB = (ValueError, KeyError, TypeError, IndexError, RuntimeError, safetensors.SafetensorError)


def _file_name(key: str) -> str:
    """``ab/key.safetensors``: 256 folders keep each of them short."""
    name = encode_name(key)
    if "%%" in name:
        raise InvalidInputError(f"The key {key[:40]!r}... is too long for a file name.", hint="Use a hash of it.")
    return f"{sha256(name.encode()).hexdigest()[:2]}/{name}{_SUFFIX}"


def _key_of(name: str) -> str:
    return unquote(name.removesuffix(_SUFFIX))


def _data_size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + _HEADER_GUESS


def _read_ahead(path: Path) -> None:
    """Let the system begin to read the file: page faults alone would ask for it in small pieces, one by one.

    Linux does so for the first MiB or two of what one call asks for. More calls would have to wait for the disk.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


class LocalPlace:
    """One file per blob, written under a temporary name and renamed, readable by its owner only."""

    def __init__(self, directory: str, *, fsync: bool = False) -> None:
        self._root = make_private_directory(Path(directory).expanduser())
        self._fsync = fsync
        # What the file looked like when its checksum was last compared, by key.
        self._verified: dict[str, tuple[tuple[int, int, int], dict[str, str]]] = {}

    def sizes(self) -> list[tuple[str, int]]:
        """See `Place`. Also removes what a killed writer left."""
        found: list[tuple[int, str, int]] = []
        try:
            for path in self._root.glob("??/*"):
                if path.name.endswith(_PARTIAL):
                    path.unlink(missing_ok=True)
                elif path.name.endswith(_SUFFIX):
                    status = path.stat()
                    found.append((status.st_atime_ns, _key_of(path.name), status.st_size))
        except OSError as error:
            raise storage_error(f"Cannot read the states in {self._root}", error) from error
        return [(key, size) for _, key, size in sorted(found)]

    def size_of(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """See `Place`."""
        return _data_size(tensors)

    def write(self, key: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> int:
        """See `Place`."""
        path = self._root / _file_name(key)
        header, data = blob_format.encode(tensors, manifest)
        make_private_directory(path.parent)
        partial = path.with_name(f"{uuid.uuid4().hex}{_PARTIAL}")
        try:
            self._write_file(partial, [memoryview(header), *data])
            # Renaming leaves a reader of the old file with the old file, whole.
            partial.replace(path)
            if self._fsync:
                fsync_directory(path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise storage_error(f"Cannot write the state {key!r} into {self._root}", error) from error
        self._verified.pop(key, None)
        return len(header) + sum(len(view) for view in data)

    def _write_file(self, path: Path, parts: list[memoryview]) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            for part in parts:
                while len(part):  # a write may stop short
                    part = part[os.write(descriptor, part) :]
            if self._fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, key: str) -> Blob | None:
        """See `Place`."""
        path = self._root / _file_name(key)
        try:
            before = path.stat()
            manifest = self._manifest(key, path, before)
            _read_ahead(path)
            # One mapping for all tensors (the library makes one each): a run of them can be copied at once.
            tensors = blob_format.tensors_of(map_file(path, before.st_size))
            # The time of last use, for eviction after a restart; the time of change must stay as it is.
            os.utime(path, ns=(max(before.st_atime_ns + 1, time.time_ns()), before.st_mtime_ns))
        except FileNotFoundError:
            return None
        except _NOT_A_BLOB as error:
            raise DamagedBlob(str(error)) from error
        except OSError as error:
            raise DamagedBlob(f"unreadable: {error}") from error
        return Blob(tensors, manifest)

    def _manifest(self, key: str, path: Path, status: os.stat_result) -> dict[str, str]:
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._verified.get(key)
        if known is None or known[0] != mark:
            if not status.st_size:
                raise ValueError("empty file")
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as raw,
            ):
                known = (mark, blob_format.verify(raw))
            self._verified[key] = known
        return dict(known[1])

    def remove(self, key: str) -> None:
        """See `Place`."""
        self._verified.pop(key, None)
        path = self._root / _file_name(key)
        try:
            path.unlink(missing_ok=True)
            # What was set aside derives from the same memory.
            path.with_suffix(_DAMAGED).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(f"Cannot remove the state {key!r} from {self._root}", error) from error

    def set_aside(self, key: str) -> None:
        """See `Place`."""
        self._verified.pop(key, None)
        path = self._root / _file_name(key)
        try:
            path.replace(path.with_suffix(_DAMAGED))
        except OSError as error:
            logger.warning("The damaged state %s could not be moved: %s", path, error)


class RemotePlace:
    """Objects behind an fsspec URL; each is written and read as a whole."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
            self._root: str = root.rstrip("/")
            self._fs.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise StorageError(
                f"Cannot use {url!r} for states: {error}.", hint="Check the URL and install its fsspec driver."
            ) from error

    def sizes(self) -> list[tuple[str, int]]:
        """See `Place`. Buckets know no time of use: the order is that of the names."""
        found: dict[str, Any] = self._call("list", lambda: self._fs.find(self._root, detail=True))
        return sorted(
            (_key_of(path.rsplit("/", 1)[1]), int(info["size"]))
            for path, info in found.items()
            if path.endswith(_SUFFIX)
        )

    def size_of(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """See `Place`."""
        return _data_size(tensors)

    def write(self, key: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> int:
        """See `Place`. Object stores show an object when it is whole; elsewhere the checksum finds half a file."""
        header, data = blob_format.encode(tensors, manifest)
        raw = b"".join([header, *data])
        path = f"{self._root}/{_file_name(key)}"
        self._call("write", lambda: self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True))
        self._call("write", lambda: self._fs.pipe_file(path, raw))
        return len(raw)

    def read(self, key: str) -> Blob | None:
        """See `Place`."""
        try:
            raw: bytes = self._fs.cat_file(f"{self._root}/{_file_name(key)}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedBlob(f"unreadable: {error}") from error
        try:
            manifest = blob_format.verify(memoryview(raw))
            _, entries, _ = blob_format.read_header(memoryview(raw))
            loaded = safetensors.torch.load(raw)
        except _NOT_A_BLOB as error:
            raise DamagedBlob(str(error)) from error
        return Blob({name: loaded[name] for name in entries}, manifest)

    def remove(self, key: str) -> None:
        """See `Place`."""
        path = f"{self._root}/{_file_name(key)}"
        for name in (path, path.removesuffix(_SUFFIX) + _DAMAGED):
            if self._call("look for", lambda name=name: self._fs.exists(name)):
                self._call("remove", lambda name=name: self._fs.rm_file(name))

    def set_aside(self, key: str) -> None:
        """See `Place`."""
        path = f"{self._root}/{_file_name(key)}"
        try:
            self._fs.mv(path, path.removesuffix(_SUFFIX) + _DAMAGED)
        except OSError as error:
            logger.warning("The damaged state %s could not be moved: %s", path, error)

    def _call(self, what: str, action: Any) -> Any:
        try:
            return action()
        except OSError as error:
            raise storage_error(f"Cannot {what} states in {self._root}", error) from error


class MemoryPlace:
    """RAM. Tensors are copied in, one behind the other, and shared by all who read them: nobody may write to them."""

    def __init__(self) -> None:
        self._blobs: dict[str, Blob] = {}
        self._pinned = torch.cuda.is_available()  # the bus reads pinned memory without a copy in between

    def sizes(self) -> list[tuple[str, int]]:
        """See `Place`."""
        return []

    def size_of(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """See `Place`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def write(self, key: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> int:
        """See `Place`."""
        self._blobs[key] = Blob(self._copied(tensors), dict(manifest))
        return self.size_of(tensors)

    def _copied(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ends = list(accumulate(-(-t.numel() * t.element_size() // _ALIGN) * _ALIGN for t in tensors.values()))
        storage = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=self._pinned)
        kept = {}
        for start, (name, tensor) in zip([0, *ends], tensors.items(), strict=False):
            size = tensor.numel() * tensor.element_size()
            kept[name] = storage[start : start + size].view(tensor.dtype).view(tensor.shape)
            kept[name].copy_(tensor.detach())
        return kept

    def read(self, key: str) -> Blob | None:
        """See `Place`."""
        return self._blobs.get(key)

    def remove(self, key: str) -> None:
        """See `Place`."""
        self._blobs.pop(key, None)

    def set_aside(self, key: str) -> None:
        """See `Place`."""
        self.remove(key)
