"""What several storage tests need: small vectors, indexes of both kinds, and separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnm_core.storage.index import Point, SparseVector, VectorIndex, open_index

DIM, TOKEN_DIM = 8, 4


def uid(number: int) -> str:
    """A readable point id."""
    return str(uuid.UUID(int=number + 1))


def sparse(**weights: float) -> SparseVector:
    """``sparse(i3=1.0)`` has weight 1 at index 3."""
    return SparseVector(np.array([int(k[1:]) for k in weights], dtype=np.int64), np.array(list(weights.values())))


def point(number: int, metadata: dict[str, Any] | None = None, *, seed: int | None = None) -> Point:
    """A point with all three kinds of vectors, the same for the same number and seed."""
    rng = np.random.default_rng([number, seed or 0])
    indices = rng.choice(30, size=5, replace=False)
    return Point(
        id=uid(number),
        dense=rng.standard_normal(DIM).astype(np.float32),
        sparse=SparseVector(indices, rng.uniform(0.5, 2.0, 5)),
        tokens=rng.standard_normal((3, TOKEN_DIM)).astype(np.float32),
        payload={"id": f"m{number}", "metadata": metadata or {}},
    )


def both(tmp_path: Path, namespace: str = "default") -> tuple[VectorIndex, VectorIndex]:
    """An embedded index and one of qdrant-client's local mode."""
    return (
        open_index(tmp_path / "index", namespace=namespace, dim=DIM, token_dim=TOKEN_DIM),
        open_index(None, namespace=namespace, dim=DIM, token_dim=TOKEN_DIM),
    )


def python(script: Path | str, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Another process with the same imports as this one."""
    code = ["-c", script] if isinstance(script, str) else [str(script)]
    return subprocess.Popen([sys.executable, *code, *args], text=True, env=child_environment(), **kwargs)


def child_environment() -> dict[str, str]:
    """This environment, with this process's import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def bytes_on_disk(root: Path, needle: str) -> list[Path]:
    """The files below `root` that hold `needle` in UTF-8 or UTF-16."""
    encodings: Sequence[bytes] = [needle.encode(), needle.encode("utf-16-le")]
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(raw in path.read_bytes() for raw in encodings)]
