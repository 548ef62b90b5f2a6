"""Files mapped into memory whose bytes can also be read by all cores at once, without the mapping.

A tensor over a mapping costs nothing until it is used. To copy all of it, page faults are slow even where the file is
in the page cache: several threads that read the file itself are faster. So each mapping is known by its address for as
long as it lives, and what lies in it can be read from the file.
"""

from __future__ import annotations

import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnm_core.storage.paths import storage_error

_PIECE = 4 * 2**20
_MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class _Source:
    """Which file is mapped. It is not kept open: thousands may be mapped, and a process may not open as many."""

    path: Path
    mark: tuple[int, ...]


# By the address of the mapping.
_sources: dict[int, _Source] = {}


def map_file(path: Path, nbytes: int) -> Tensor:
    """The first `nbytes` bytes of a file, uint8 [nbytes]. What is written into the tensor never reaches the file.

    Raises:
        OSError: the file is not there or cannot be read.
        RuntimeError: it cannot be mapped, for example because it is shorter.
    """
    # Before it is mapped: if another file takes its place in between, the mark is wrong and the mapping is read.
    mark = _mark(path.stat())
    # Python's own mmap would keep the file open.
    storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=nbytes)
    # All tensors over this array hold it, and it holds the mapping: the address is forgotten before it can be reused.
    array: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    data = torch.from_numpy(array)
    _sources[data.data_ptr()] = _Source(path, mark)
    weakref.finalize(array, _sources.pop, data.data_ptr(), None).atexit = False
    return data


def read_into(tensor: Tensor, target: Tensor) -> bool:
    """Fill `target` with the bytes of `tensor`, read from its file by all cores.

    Args:
        tensor: a view of what `map_file` gave, contiguous, of any type and shape, into which nothing was written.
        target: contiguous, on the CPU, of as many bytes.

    Returns:
        False if `tensor` is something else, its file is not there any more or is another one by now, or this system
        cannot read so. What `target` holds is then undefined, and `tensor` is to be copied from.

    Raises:
        StorageError: the disk fails; touching the mapping would end the process.
    """
    source = _source_of(tensor)
    if source is None or not hasattr(os, "preadv"):
        return False
    try:
        descriptor = os.open(source.path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if _mark(os.fstat(descriptor)) != source.mark:
            return False
        offset = tensor.data_ptr() - tensor.untyped_storage().data_ptr()
        return _read(descriptor, offset, _bytes(target))
    except OSError as error:
        raise storage_error(f"Cannot read {source.path}", error) from error
    finally:
        os.close(descriptor)


def _source_of(tensor: Tensor) -> _Source | None:
    if tensor.device.type != "cpu" or not tensor.nbytes or not tensor.is_contiguous():
        return None
    return _sources.get(tensor.untyped_storage().data_ptr())


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def _bytes(target: Tensor) -> memoryview:
    array: Any = target.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _read(descriptor: int, offset: int, target: memoryview) -> bool:
    if len(target) <= _PIECE:
        return _read_piece(descriptor, offset, target)
    pieces: list[Future[bool]] = [
        _readers().submit(_read_piece, descriptor, offset + start, target[start : start + _PIECE])
        for start in range(0, len(target), _PIECE)
    ]
    try:
        return all(piece.result() for piece in pieces)
    finally:
        wait(pieces)  # also if one fails or the user interrupts: afterwards the file is closed and the target reused


def _read_piece(descriptor: int, offset: int, target: memoryview) -> bool:
    while len(target):  # a read may stop short
        count = os.preadv(descriptor, [target], offset)
        if not count:
            return False
        offset, target = offset + count, target[count:]
    return True


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "nnm-read")
