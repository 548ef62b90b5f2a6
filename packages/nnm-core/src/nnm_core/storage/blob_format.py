"""The bytes of a state: a safetensors file whose tensors lie in the caller's order and whose header has their SHA-256.

safetensors' own writer sorts the tensors by dtype and name; layer-major order on disk is what lets a reader take one
layer after the other without jumping, so the header (8 bytes of length, JSON, data) is written here. The library also
maps each tensor apart, so local files are read here too, after the checksum; any safetensors reader can read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from nnm_core.errors import InvalidInputError

_ALIGN = 64
_TREE = "sha256-tree"
# Below so many bytes starting threads takes longer than hashing.
_SERIAL = 4 * 2**20
_MOST_THREADS = 16
_LENGTH = struct.Struct("<Q")
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def encode(tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, str]) -> tuple[bytes, list[memoryview]]:
    """Header and data of the file. The data are views of the tensors where they are contiguous and on the CPU.

    Raises:
        InvalidInputError: a dtype that safetensors does not have, or a reserved name.
    """
    entries: dict[str, Any] = {}
    data: list[memoryview] = []
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or name == "__metadata__":
            raise InvalidInputError(f"The tensor {name!r} of type {tensor.dtype} cannot be stored.")
        view = _bytes(tensor)
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(view)],
        }
        offset += len(view)
        data.append(view)
    digest = _tree_digest(manifest, entries, data)
    header = {"__metadata__": {**manifest, "format": "pt", _TREE: digest}, **entries}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # Spaces until the data begin on a cache line, so that mapped tensors are aligned.
    text += b" " * (-(len(text) + _LENGTH.size) % _ALIGN)
    return _LENGTH.pack(len(text)) + text, data


def read_header(raw: memoryview) -> tuple[dict[str, str], dict[str, Any], int]:
    """Manifest, entries in file order, and where the data begin.

    Raises:
        ValueError, KeyError, TypeError: these are not such bytes.
    """
    if len(raw) < _LENGTH.size:
        raise ValueError("shorter than its header")
    length = _LENGTH.unpack_from(raw)[0]
    if length > len(raw) - _LENGTH.size:
        raise ValueError("shorter than its header")
    header = json.loads(bytes(raw[_LENGTH.size : _LENGTH.size + length]))
    manifest = header.pop("__metadata__")
    ends = [entry["data_offsets"][1] for entry in header.values()]
    if _LENGTH.size + length + max(ends) != len(raw):
        raise ValueError("its length is not what its header says")
    return manifest, header, _LENGTH.size + length


def verify(raw: memoryview) -> dict[str, str]:
    """The caller's manifest of a whole file, after comparing the checksum.

    Raises:
        ValueError, KeyError, TypeError: the bytes are not what was written.
    """
    manifest, entries, start = read_header(raw)
    tree, plain = manifest.pop(_TREE, None), manifest.pop("sha256", None)
    manifest.pop("format")
    if tree is None:  # written by an earlier version
        found, digest = _digest(manifest, entries, [raw[start:]]), plain
    else:
        offsets = [entry["data_offsets"] for entry in entries.values()]
        data = [raw[start + first : start + last] for first, last in offsets]
        try:
            if sum(len(view) for view in data) != len(raw) - start:
                raise ValueError("its tensors are not its data")
            found, digest = _tree_digest(manifest, entries, data), tree
        finally:
            for view in data:  # an exception keeps this frame alive, and the mapping must be closed
                view.release()
    if found != digest:
        raise ValueError("the checksum differs")
    return manifest


def tensors_of(data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a whole file that was verified, as views of its bytes [size], in file order.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: these are not such bytes.
    """
    array: Any = data.numpy()
    _, entries, start = read_header(memoryview(array))
    found = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        part, dtype = data[start + first : start + last], _TYPES[entry["dtype"]]
        if (start + first) % dtype.itemsize:  # behind a tensor of an odd size
            part = part.clone()
        found[name] = part.view(dtype).view(entry["shape"])
    return found


def _tree_digest(manifest: Mapping[str, str], entries: Mapping[str, Any], data: list[memoryview]) -> str:
    """SHA-256 over manifest, names, types, shapes, and the SHA-256 of each tensor, which all cores compute together."""
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    if threads > 1 and sum(len(view) for view in data) > _SERIAL:
        with ThreadPoolExecutor(threads) as pool:
            leaves = list(pool.map(_leaf, data))
    else:
        leaves = [_leaf(view) for view in data]
    return _digest(manifest, entries, [memoryview(leaf) for leaf in leaves])


def _leaf(view: memoryview) -> bytes:
    return hashlib.sha256(view).digest()


def _digest(manifest: Mapping[str, str], entries: Mapping[str, Any], data: list[memoryview]) -> str:
    """SHA-256 over manifest, names, types, shapes and data: a flipped bit anywhere is found."""
    described = json.dumps([sorted(manifest.items()), list(entries.items())], separators=(",", ":"))
    hashed = hashlib.sha256(described.encode("utf-8"))
    for view in data:
        hashed.update(view)
    return hashed.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array).cast("B")
