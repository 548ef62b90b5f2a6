"""Expanding the stored int8 weights into a folder that `transformers` loads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

MANIFEST = "manifest.json"
MARKER = "complete"
SCALE = ".scale"
_COPIED = (".json", ".jinja")


class WeightsError(RuntimeError):
    """The stored weights are damaged; `hint` says what to do."""

    hint = "Install the package nnm-mini again: a file of its weights is damaged or missing."


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(source: Path) -> dict[str, Any]:
    """The stored folder's manifest: `files` maps names to SHA-256 digests, `checksum` is the digest of them all."""
    manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def verify(source: Path) -> str:
    """Compare every stored file with its digest and return the checksum of the whole.

    Raises:
        WeightsError: a file is missing or differs.
    """
    manifest = read_manifest(source)
    for name, expected in manifest["files"].items():
        path = source / name
        if not path.is_file() or sha256(path) != expected:
            raise WeightsError(f"{name} of the nnm-mini weights is missing or damaged")
    return str(manifest["checksum"])


def expand(source: Path, target: Path) -> None:
    """Write `model.safetensors` (fp32) and the config and tokenizer files into the existing folder `target`.

    A matrix [rows, columns] is stored as int8 with one fp32 scale a row: w = q * scale[:, None].
    """
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for shard in sorted(source.glob("weights-*.safetensors")):
        with safe_open(str(shard), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                if name.endswith(SCALE):
                    continue
                value = file.get_tensor(name)
                if value.dtype == np.int8:
                    value = value.astype(np.float32) * file.get_tensor(name + SCALE)[:, None]
                tensors[name] = np.ascontiguousarray(value, dtype=np.float32)
    save_file(tensors, str(target / "model.safetensors"), metadata={"format": "pt"})
    for path in source.iterdir():
        if path.suffix in _COPIED and path.name != MANIFEST:
            shutil.copyfile(path, target / path.name)


def cache_root() -> Path:
    """The user's cache folder for nnm-mini: NNM_MINI_CACHE, or the platform's place."""
    given = os.environ.get("NNM_MINI_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nnm-mini"


def materialise(source: Path, root: Path) -> Path:
    """The expanded folder below `root`, made once and completely, or not at all.

    Raises:
        WeightsError: the stored weights are damaged.
        OSError: `root` can not be written.
    """
    target = root / str(read_manifest(source)["checksum"])[:16]
    if _complete(target):
        return target
    verify(source)
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="expanding-", dir=root))
    try:
        expand(source, temporary)
        (temporary / MARKER).write_text(str((temporary / "model.safetensors").stat().st_size), encoding="utf-8")
        _move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _complete(target: Path) -> bool:
    """Whether the marker is there and the weights have the size that it names (a cut file is expanded again)."""
    marker, weights = target / MARKER, target / "model.safetensors"
    return marker.is_file() and weights.is_file() and marker.read_text(encoding="utf-8") == str(weights.stat().st_size)


def _move_into_place(temporary: Path, target: Path) -> None:
    if target.exists() and not _complete(target):
        shutil.rmtree(target)
    try:
        temporary.rename(target)
    except OSError:
        if not _complete(target):  # otherwise another process was faster, with the same files
            raise
