"""States on disk: safetensors files that are mapped into memory, checked once, and evicted when space runs out.

A state is a cache. Whatever is wrong with a file (truncated, altered, made by another model), reading it is a miss
and never a wrong tensor.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nnm_core.errors import EngineClosedError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A stored state.

    Attributes:
        tensors: by name, in the order in which they were put; on the CPU. To be read only: in RAM all readers share
            them. Those of a local file are views of the mapped file: what is written into them never reaches it.
        manifest: what was put with them.
    """

    tensors: Mapping[str, torch.Tensor]
    manifest: Mapping[str, str]


class BlobStore(Protocol):
    """Named groups of tensors. All methods may be called from several threads.

    Raises (all methods):
        InvalidInputError: an empty key, a manifest that is not text.
        StorageError: writing failed (disk full, read-only); what was stored before is intact.
        EngineClosedError: after `close`.
    """

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> int:
        """Store, replacing what the key had.

        Returns:
            bytes used; 0 if it is larger than the whole quota and was therefore not kept.
        """

    def get(self, key: str, *, expect: Mapping[str, str] | None = None) -> Blob | None:
        """Load; None if it is not there, damaged, or lacks one of the manifest entries in `expect`."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove; keys that are not there are passed over."""

    def keys(self) -> set[str]:
        """The keys of all blobs."""

    def nbytes(self) -> int:
        """Bytes used by all blobs."""

    def pin(self, keys: Collection[str]) -> None:
        """Keep these from being evicted until as many `unpin`; keys that are not there yet may be pinned."""

    def unpin(self, keys: Collection[str]) -> None:
        """Undo one `pin`."""

    def close(self) -> None:
        """Release what is held; a second call does nothing. Tensors that were loaded stay valid."""


def open_blobs(location: str | Path | None, *, quota: int | None = None, fsync: bool = False) -> BlobStore:
    """Open or create a store of states.

    Args:
        location: a directory, an fsspec URL such as ``s3://bucket/folder``, or None for RAM.
        quota: most bytes to keep; the least recently used blobs go first. None for no limit.
        fsync: wait for the disk at each `put`. Not needed for correctness: a file that a power cut damaged is a miss.

    Raises:
        InvalidInputError: a negative quota.
        StorageError: the place cannot be used.
    """
    from nnm_core.storage import blob_places

    if quota is not None and quota < 0:
        raise InvalidInputError(f"A quota is a number of bytes, not {quota}.")
    if location is None:
        return CachedBlobs(blob_places.MemoryPlace(), quota=quota)
    if "://" in str(location) and not str(location).startswith("file://"):
        return CachedBlobs(blob_places.RemotePlace(str(location)), quota=quota)
    return CachedBlobs(blob_places.LocalPlace(str(location).removeprefix("file://"), fsync=fsync), quota=quota)


class Place(Protocol):
    """Where blobs lie. Knows nothing about quotas; one caller at a time for each key."""

    def sizes(self) -> list[tuple[str, int]]:
        """All keys with their bytes, least recently used first."""

    def write(self, key: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> int:
        """Store atomically; bytes used."""

    def read(self, key: str) -> Blob | None:
        """Load and verify; None if it is not there. Raises `DamagedBlob`."""

    def remove(self, key: str) -> None:
        """Remove; no error if it is not there."""

    def set_aside(self, key: str) -> None:
        """Move a damaged blob out of the way."""

    def size_of(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Roughly how many bytes `write` would use."""


class DamagedBlob(Exception):
    """The stored bytes are not what was put; a signal from a place, never seen by callers."""


class CachedBlobs:
    """`BlobStore` over a place: quota, order of use, pins and misses."""

    def __init__(self, place: Place, *, quota: int | None = None) -> None:
        self._place = place
        self._quota = quota
        self._lock = threading.RLock()
        self._pins: Counter[str] = Counter()
        self._closed = False
        self._sizes: OrderedDict[str, int] = OrderedDict(place.sizes())
        self._total = sum(self._sizes.values())
        with self._use():
            self._make_room(0)

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> int:
        """See `BlobStore`."""
        _check(key, tensors, manifest)
        with self._use():
            need = self._place.size_of(tensors)
            if self._quota is not None and need > self._quota:
                logger.warning("State %s has %d bytes, more than the quota of %d: not kept.", key, need, self._quota)
                self._drop(key)
                return 0
            self._make_room(need - self._sizes.get(key, 0), keep=key)
            size = self._place.write(key, tensors, manifest)
            self._total += size - self._sizes.get(key, 0)
            self._sizes[key] = size
            self._sizes.move_to_end(key)
            self._make_room(0, keep=key)
            return size

    def get(self, key: str, *, expect: Mapping[str, str] | None = None) -> Blob | None:
        """See `BlobStore`."""
        with self._use():
            if key not in self._sizes:
                return None
            try:
                blob = self._place.read(key)
            except DamagedBlob as error:
                logger.warning("State %s is damaged (%s): it is set aside and the text is used.", key, error)
                self._place.set_aside(key)
                blob = None
            if blob is None:
                self._total -= self._sizes.pop(key)
                return None
            self._sizes.move_to_end(key)
        for name, value in (expect or {}).items():
            if blob.manifest.get(name) != value:
                logger.warning("State %s has %s=%r, not %r: not used.", key, name, blob.manifest.get(name), value)
                return None
        return blob

    def delete(self, keys: Iterable[str]) -> None:
        """See `BlobStore`."""
        with self._use():
            for key in keys:
                self._drop(key)

    def keys(self) -> set[str]:
        """See `BlobStore`."""
        with self._use():
            return set(self._sizes)

    def nbytes(self) -> int:
        """See `BlobStore`."""
        with self._use():
            return self._total

    def pin(self, keys: Collection[str]) -> None:
        """See `BlobStore`."""
        with self._use():
            self._pins.update(keys)

    def unpin(self, keys: Collection[str]) -> None:
        """See `BlobStore`."""
        with self._use():
            self._pins.subtract(keys)
            for key in keys:
                if self._pins[key] <= 0:
                    del self._pins[key]
            self._make_room(0)

    def close(self) -> None:
        """See `BlobStore`."""
        with self._lock:
            self._closed = True

    def _make_room(self, extra: int, keep: str | None = None) -> None:
        """Evict what was used longest ago until `extra` more bytes fit. Pinned blobs may exceed the quota."""
        if self._quota is None or self._total + extra <= self._quota:
            return
        for key in list(self._sizes):
            if key not in self._pins and key != keep:
                self._drop(key)
                if self._total + extra <= self._quota:
                    return

    def _drop(self, key: str) -> None:
        self._place.remove(key)
        self._total -= self._sizes.pop(key, 0)

    @contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise EngineClosedError("The states are closed.", hint="Open the store again.")
            yield


def _check(key: Any, tensors: Mapping[str, torch.Tensor], manifest: Mapping[Any, Any]) -> None:
    if not isinstance(key, str) or not key:
        raise InvalidInputError(f"A blob's key must be a non-empty string, not {key!r}.")
    if not tensors:
        raise InvalidInputError(f"The state {key!r} has no tensors.")
    for name, value in manifest.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInputError(f"The manifest of {key!r} must map text to text; {name!r} does not.")
        if name in ("sha256", "sha256-tree", "format"):
            raise InvalidInputError(f"The manifest entry {name!r} is the store's own.")
