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
from nnm_core.storage.filters import And, Filter, Not, Or, is_number

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
    """`Dialect` of qdrant-edge.

    Args:
        numeric: paths that have an index for numbers. The engine would ask that index for ranges of dates as well, and
            get numbers.
    """

    def __init__(self, numeric: Collection[str] = ()) -> None:
        self._numeric = numeric

    def value(self, path: tuple[str, ...], value: str | int) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), match=edge.MatchValue(value))

    def any_of(self, path: tuple[str, ...], values: Sequence[str]) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), match=edge.MatchAny(list(values)))

    def boolean(self, path: tuple[str, ...], value: bool) -> Any:
        """See `Dialect`."""
        matched = edge.MatchValue(int(value))
        return self.group(should=[edge.FieldCondition(where, match=matched) for where in _boolean_paths(path)])

    def numbers(self, path: tuple[str, ...], **bounds: float) -> Any:
        """See `Dialect`."""
        return edge.FieldCondition(_path(path), range=edge.RangeFloat(**bounds))

    def dates(self, path: tuple[str, ...], **bounds: str) -> Any | None:
        """See `Dialect`."""
        if _path(path) in self._numeric:
            return None
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


def wanted_indexes(condition: Filter) -> dict[str, edge.PayloadSchemaType]:
    """The payload paths that a filter compares, with the kind of index that serves them; the first kind wins."""
    if isinstance(condition, And | Or):
        parts = [wanted_indexes(part) for part in reversed(condition.parts)]
        return {path: kind for part in parts for path, kind in part.items()}
    if isinstance(condition, Not):
        return wanted_indexes(condition.part)
    if any('"' in part or "\\" in part for part in condition.path) or condition.op in ("text", "exists", "is_empty"):
        return {}
    values = condition.value if condition.op == "in" else [condition.value]
    return {path: kind for value in values for path, kind in _serving(condition.path, value, condition.op).items()}


def _serving(path: tuple[str, ...], value: Any, op: str) -> dict[str, edge.PayloadSchemaType]:
    if isinstance(value, bool):
        return dict.fromkeys(_boolean_paths(path), edge.PayloadSchemaType.Integer)
    if is_number(value):
        return {_path(path): edge.PayloadSchemaType.Float}
    if isinstance(value, str) and op in ("eq", "in"):
        return {_path(path): edge.PayloadSchemaType.Keyword}
    return {}


def _boolean_paths(path: tuple[str, ...]) -> tuple[str, str]:
    return f'{_path(path)}."{_BOOL}"', f'{_path(path)}[]."{_BOOL}"'
