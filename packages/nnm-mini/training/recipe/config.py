"""Config files and the model's shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Qwen3-shaped decoder; sizes are numbers of features, heads, layers or tokens."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    theta: float
    context: int
    epsilon: float = 1e-6


def load(path: Path) -> dict[str, Any]:
    """A JSON config; a `base` key names a config beside it whose values hold where this one has none."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    base = config.pop("base", None)
    return _merge(load(path.parent / base), config) if base else config


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict) and key not in ("mix", "sources")
        out[key] = _merge(base[key], value) if nested else value
    return out
