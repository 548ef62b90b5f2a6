"""Where a namespace lives on disk: one private directory each, with a name that cannot leave the store."""

from __future__ import annotations

import errno
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnm_core.errors import InvalidInputError, StorageError

_PLAIN = re.compile(r"[a-z0-9_-][a-z0-9_.-]*")
# Names that Windows reserves whatever their extension is.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
# File systems allow 255 bytes; the rest is left for suffixes of temporary files.
_MAX_NAME = 180


def encode_name(name: str) -> str:
    """Turn any text into a name for a file or directory: injective, readable where it is plain, never a path.

    Capitals are percent-encoded as well, because some file systems do not tell them apart.

    Raises:
        InvalidInputError: the name is empty, not text, or not valid Unicode.
    """
    given: Any = name
    if not isinstance(given, str) or not given:
        raise InvalidInputError("A name must be a non-empty string.", hint="Pass for example 'default'.")
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"The name {name!r} is not valid Unicode.") from error
    if _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name) and not name.endswith(".") and len(name) <= _MAX_NAME:
        return name
    encoded = "".join(c if re.fullmatch(r"[a-z0-9_-]", c) else _percent(c) for c in name)
    if _RESERVED.fullmatch(encoded):
        encoded = "%" + format(raw[0], "02X") + encoded[1:]
    if len(encoded) <= _MAX_NAME:
        return encoded
    # '%%' is never produced by the encoding above, so a shortened name cannot meet another one.
    return f"{encoded[:80].rstrip('%')}%%{sha256(raw).hexdigest()}"


def _percent(char: str) -> str:
    return quote(char, safe="") if quote(char, safe="") != char else f"%{ord(char):02X}"


def namespace_directory(root: str | Path, namespace: str) -> Path:
    """The directory of a namespace below the store's root. Nothing is created."""
    return Path(root).expanduser() / encode_name(namespace)


def make_private_directory(path: Path) -> Path:
    """Create `path` (and its parents) so that only its owner can look inside; an existing one is left as it is.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise storage_error(f"Cannot create the folder {path}", error) from error
    return path


def storage_error(what: str, error: OSError) -> StorageError:
    """A StorageError for a failed system call, with a hint that fits its errno."""
    return StorageError(f"{what}: {error.strerror or error}.", hint=hint_for(error))


def hint_for(error: OSError) -> str:
    """One sentence about what to do after `error`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "The disk is full: free some space or set a smaller state quota; what was stored before is intact."
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return "The folder cannot be written: check its owner and whether the disk is mounted read-only."
    return "Check that the path exists and that its disk is healthy."


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable, on systems that can open directories."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
