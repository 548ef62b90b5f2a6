"""Filters and payloads as qdrant-edge needs them.

Its Python class for exact matches takes ``True`` as the integer 1 and has no other way to ask for a truth value.
Booleans are therefore stored as ``{"$b": 1}`` or ``{"$b": 0}``; keys that begin with a dollar get another one, so
that a caller's own ``{"$b": 1}`` stays itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import qdrant_edge as edge

from nnm_core.storage.filter_translation import json_path
from nnm_core.storage.filters import And, Compare, Filter, Not, Or

_BOOL = "$b"


def encode_payload(value: Any) -> Any:
    """A payload with booleans and dollar keys encoded."""
    if isinstance(value, bool):
        return {_BOOL: int(value)}
    if isinstance(value, Mapping):
        return {_key(key): encode_payload(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_payload(item) for item in value]
    return value


def decode_payload(value: Any) -> Any:
    """The payload that `encode_payload` was given."""
    if isinstance(value, dict):
        if value.keys() == {_BOOL}:
            return bool(value[_BOOL])
        return {key[1:] if key.startswith("$$") else key: decode_payload(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_payload(item) for item in value]
    return value


def _key(key: str) -> str:
    return f"${key}" if key.startswith("$") else key


def _path(path: Sequence[str]) -> str:
    return json_path([_key(part) for part in path])


class EdgeDialect:
    """`Dialect` of qdrant-edge."""

    def value(self, path: tuple[str, ...], value: str | int) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), match=edge.MatchValue(value))

    def any_of(self, path: tuple[str, ...], values: Sequence[str]) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), match=edge.MatchAny(list(values)))

    def boolean(self, path: tuple[str, ...], value: bool) -> Any:
        """See `Dialect`."""
        single, listed = f'{_path(path)}."{_BOOL}"', f'{_path(path)}[]."{_BOOL}"'
        return self.group(should=[edge.FieldCondition(p, match=edge.MatchValue(int(value))) for p in (single, listed)])

    def numbers(self, path: tuple[str, ...], **bounds: float) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), range=edge.RangeFloat(**bounds))

    def dates(self, path: tuple[str, ...], **bounds: str) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), range=edge.RangeDateTime(**bounds))

    def substring(self, path: tuple[str, ...], part: str) -> Any | None:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), match=edge.MatchSubstring(part))

    def null(self, path: tuple[str, ...]) -> Any:
        """See `Dialect`."""
        return edge.IsNullCondition(_path(path))

    def empty(self, path: tuple[str, ...]) -> Any:
        """See `Dialect`."""
        return edge.IsEmptyCondition(_path(path))

    def points(self, ids: Collection[str]) -> Any:
        """See `Dialect`."""
        return edge.HasIdCondition({UUID(point_id) for point_id in ids})

    def group(self, *, must: Sequence[Any] = (), should: Sequence[Any] = (), must_not: Sequence[Any] = ()) -> Any:
        """See `Dialect`."""
        return edge.Filter(must=list(must) or None, should=list(should) or None, must_not=list(must_not) or None)


def keyword_paths(condition: Filter) -> set[str]:
    """The payload paths that are compared with strings: these profit from a keyword index."""
    if isinstance(condition, And | Or):
        return {path for part in condition.parts for path in keyword_paths(part)}
    if isinstance(condition, Not):
        return keyword_paths(condition.part)
    return {_path(condition.path)} if _wants_keyword(condition) else set()


def _wants_keyword(node: Compare) -> bool:
    values = node.value if node.op == "in" else [node.value]
    plain = not any('"' in part or "\\" in part for part in node.path)
    return plain and node.op in ("eq", "in") and any(isinstance(value, str) for value in values)
