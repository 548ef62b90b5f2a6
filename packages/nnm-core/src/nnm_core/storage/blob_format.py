"""The bytes of a state: a safetensors file whose tensors lie in the caller's order and whose header has their SHA-256.

safetensors' own writer sorts the tensors by dtype and name; layer-major order on disk is what lets a reader take one
layer after the other without jumping, so the header (8 bytes of length, JSON, data) is written here. Reading goes
through the safetensors library, which validates it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import torch

from nnm_core.errors import InvalidInputError

_ALIGN = 64
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
    digest = _digest(manifest, entries, data)
    header = {"__metadata__": {**manifest, "format": "pt", "sha256": digest}, **entries}
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
    digest = manifest.pop("sha256")
    manifest.pop("format")
    if _digest(manifest, entries, [raw[start:]]) != digest:
        raise ValueError("the checksum differs")
    return manifest


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
