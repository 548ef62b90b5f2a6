"""The journal's tables, and the translation of values to and from its columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnm_core.errors import InvalidInputError

FORMAT_VERSION = 1
# "NNMj": lets `file` and a curious reader tell whose database this is.
APPLICATION_ID = 0x4E4E4D6A

PENDING, LIVE, SUPERSEDED = 0, 1, 2

SCHEMA = """
CREATE TABLE versions (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    status     INTEGER NOT NULL,
    tombstone  INTEGER NOT NULL DEFAULT 0,
    text       TEXT    NOT NULL,
    metadata   TEXT    NOT NULL,
    created    REAL    NOT NULL,
    supersedes INTEGER,
    digest     TEXT    NOT NULL,
    point      TEXT    NOT NULL UNIQUE,
    tokens     INTEGER NOT NULL DEFAULT 0,
    vector     BLOB,
    shape      TEXT,
    UNIQUE (id, version)
);
CREATE INDEX versions_live ON versions (id) WHERE status = 1;
CREATE INDEX versions_pending ON versions (seq) WHERE status = 0;
-- A state may be computed behind other memories: it has one row for every version that it derives from.
CREATE TABLE states (
    key          TEXT NOT NULL,
    point        TEXT NOT NULL,
    left_context TEXT NOT NULL,
    owner        INTEGER NOT NULL,
    PRIMARY KEY (key, point)
);
CREATE INDEX states_point ON states (point);
-- What has to be removed from the index and the blobs; `erase` asks for its bytes to leave the disk.
CREATE TABLE garbage (
    kind  TEXT NOT NULL,
    name  TEXT NOT NULL,
    erase INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, name)
);
CREATE TABLE settings (key TEXT PRIMARY KEY, value BLOB NOT NULL, json INTEGER NOT NULL);
"""

_INT64 = 2**63


def encode_metadata(metadata: Mapping[str, Any], memory_id: str) -> str:
    """JSON text of `metadata` in its own key order.

    Raises:
        InvalidInputError: a value is not JSON (the message names its key); integers must fit 64 bits, because the
            index keeps no more.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"The metadata of {memory_id!r} must be a mapping, not {type(metadata).__name__}.")
    for key, value in metadata.items():
        _check_key(key, f"{key}", memory_id)
        _check(value, str(key), memory_id)
    return json.dumps(_plain(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    # json knows dict only, callers may pass any Mapping.
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _check(value: Any, where: str, memory_id: str) -> None:
    if isinstance(value, str):
        _check_text(value, where, memory_id)
    elif value is None or isinstance(value, bool):
        return
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise _refused(where, memory_id, "an integer of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _refused(where, memory_id, f"the float {value}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_key(key, where, memory_id)
            _check(item, f"{where}.{key}", memory_id)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check(item, f"{where}[{number}]", memory_id)
    else:
        raise _refused(where, memory_id, f"a {type(value).__name__}")


def _check_key(key: Any, where: str, memory_id: str) -> None:
    if not isinstance(key, str):
        raise _refused(where, memory_id, f"a key of type {type(key).__name__}")
    _check_text(key, where, memory_id)


def _check_text(text: str, where: str, memory_id: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refused(ascii(where), memory_id, "text that is not valid Unicode (a lone surrogate)") from error


def _refused(where: str, memory_id: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"The metadata of memory {memory_id!r} cannot be stored: {where!r} holds {what}.",
        hint="Use JSON values: text, numbers, true/false, None, lists and mappings of these.",
    )


def decode_metadata(text: str) -> dict[str, Any]:
    """The mapping that `encode_metadata` was given."""
    value: dict[str, Any] = json.loads(text)
    return value


def encode_vector(vector: np.ndarray[Any, Any] | None) -> tuple[bytes | None, str | None]:
    """Bytes and a shape line such as ``float32:384`` of a float16 or float32 array of any shape.

    Raises:
        InvalidInputError: another dtype.
    """
    if vector is None:
        return None, None
    array = np.ascontiguousarray(vector)
    if array.dtype not in (np.float16, np.float32):
        raise InvalidInputError(f"A raw vector must be float16 or float32, not {array.dtype}.")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.tobytes(), f"{array.dtype.name}:{'x'.join(map(str, array.shape))}"


def decode_vector(data: bytes | None, shape: str | None) -> np.ndarray[Any, Any] | None:
    """The array that `encode_vector` was given (a fresh, writable copy)."""
    if data is None or shape is None:
        return None
    name, _, dims = shape.partition(":")
    sizes = tuple(int(size) for size in dims.split("x") if size)
    dtype = np.dtype(name)
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).astype(dtype).reshape(sizes)
