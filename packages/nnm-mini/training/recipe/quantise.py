"""Weight-only int8 storage: one fp32 scale a row, written in shards with a manifest of digests."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from nnm_mini._weights import MANIFEST, SCALE, expand, sha256

Array = np.ndarray[Any, np.dtype[Any]]


def quantise(weight: Array) -> tuple[Array, Array]:
    """int8 values and one scale a row of a matrix: round(w / scale), scale = max |w| / 127."""
    scale = np.maximum(np.abs(weight).max(1), 1e-12).astype(np.float32) / 127
    return np.clip(np.round(weight / scale[:, None]), -127, 127).astype(np.int8), scale


def save_shards(weights: dict[str, Array], folder: Path, most_bytes: int = 15_500_000) -> None:
    """Matrices as int8, vectors as fp32, in files `weights-<n>.safetensors` of at most `most_bytes`."""
    shards: list[dict[str, Array]] = [{}]
    size = 0
    for name, weight in weights.items():
        parts = {name: weight.astype(np.float32)}
        if weight.ndim == 2:
            parts = dict(zip((name, name + SCALE), quantise(weight.astype(np.float32)), strict=True))
        needed = sum(part.nbytes for part in parts.values())
        if size and size + needed > most_bytes:
            shards.append({})
            size = 0
        shards[-1].update(parts)
        size += needed
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        path = folder / f"weights-{number}.safetensors"
        save_file(shard, str(path))
        path.chmod(0o644)


def load_stored(folder: Path) -> dict[str, Array]:
    """The fp32 weights of a stored folder, under the names of `transformers`."""
    with tempfile.TemporaryDirectory() as name:
        expand(folder, Path(name))
        return dict(load_file(str(Path(name) / "model.safetensors")))


def write_manifest(folder: Path) -> str:
    """Digests of all files and the checksum over them; returns the checksum."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST}
    checksum = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files.items()).encode()).hexdigest()
    (folder / MANIFEST).write_text(
        json.dumps({"checksum": checksum, "files": files}, indent=1) + "\n", encoding="utf-8"
    )
    return checksum
