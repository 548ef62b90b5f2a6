"""Read a `qdrant_client.models.Filter` (LangChain users write these) into the filter tree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from qdrant_client import models

from nnm_core.errors import FilterError
from nnm_core.storage.filters import And, Compare, Filter, Not, Op, Or, parse_filter, parse_path

_HINT = 'Use keys below "metadata." with match, range, is_null or is_empty, or the dict form of filters.'


def from_qdrant(value: Any) -> Filter | None:
    """The tree of a Qdrant filter on ``metadata.*``; None for an empty one.

    Raises:
        FilterError: a condition that has no place in the tree (geo, nested, full text, ids, ...).
    """
    if not isinstance(value, models.Filter):
        raise FilterError(f"Cannot use a {type(value).__name__} as a filter.", hint=_HINT)
    parts: list[Filter] = [_condition(c) for c in _list(value.must)]
    parts += [Not(_condition(c)) for c in _list(value.must_not)]
    should = [_condition(c) for c in _list(value.should)]
    if should:
        parts.append(Or(tuple(should)))
    if value.min_should is not None:
        parts.append(_at_least(value.min_should))
    return And(tuple(parts)) if parts else None


def _list(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _at_least(rule: models.MinShould) -> Filter:
    parts = [_condition(c) for c in rule.conditions]
    if not 1 <= rule.min_count <= len(parts) or len(parts) > 8:
        raise FilterError("min_should needs 1 to 8 conditions and a count among them.", hint=_HINT)
    return Or(tuple(And(choice) for choice in combinations(parts, rule.min_count)))


def _condition(value: Any) -> Filter:
    if isinstance(value, models.Filter):
        inner = from_qdrant(value)
        if inner is None:
            raise FilterError("A filter inside a filter is empty.", hint=_HINT)
        return inner
    if isinstance(value, models.IsNullCondition):
        return Compare(_path(value.is_null.key), "eq", None)
    if isinstance(value, models.IsEmptyCondition):
        return Compare(_path(value.is_empty.key), "is_empty", True)
    if isinstance(value, models.FieldCondition):
        return _field(value)
    raise FilterError(f"A filter cannot use {type(value).__name__}.", hint=_HINT)


def _path(key: str) -> tuple[str, ...]:
    path = parse_path(key)
    if len(path) < 2 or path[0] != "metadata" or any("[" in part for part in path):
        raise FilterError(f"A filter cannot use the payload key {key!r}.", hint=_HINT)
    return path[1:]


def _field(value: models.FieldCondition) -> Filter:
    path = _path(value.key)
    given = {name for name in type(value).model_fields if getattr(value, name) is not None} - {"key"}
    if len(given) != 1:
        raise FilterError(f"{value.key!r} must be asked exactly one thing, not {sorted(given)}.", hint=_HINT)
    if value.match is not None:
        return _match(path, value.match)
    if value.range is not None:
        return _range(path, value.range)
    if value.is_null is not None:
        return _maybe(Compare(path, "eq", None), holds=value.is_null)
    if value.is_empty is not None:
        return _maybe(Compare(path, "is_empty", True), holds=value.is_empty)
    raise FilterError(f"A filter cannot use {given.pop()!r} on {value.key!r}.", hint=_HINT)


def _maybe(test: Filter, *, holds: bool) -> Filter:
    return test if holds else Not(test)


def _match(path: tuple[str, ...], match: Any) -> Filter:
    if isinstance(match, models.MatchValue):
        return Compare(path, "eq", match.value)
    if isinstance(match, models.MatchAny):
        return Compare(path, "in", tuple(match.any))
    substring = getattr(models, "MatchSubstring", None)  # younger than the oldest qdrant-client that we support
    if substring is not None and isinstance(match, substring):
        parsed = parse_filter({_quote(path): {"$text": match.substring}})
        if parsed is not None:
            return parsed
    raise FilterError(
        f"A filter cannot use {type(match).__name__}.",
        hint='Use {"key": {"$text": "part"}} for a substring, {"key": {"$nin": [...]}} for exceptions.',
    )


def _quote(path: tuple[str, ...]) -> str:
    return ".".join(f'"{part}"' for part in path)


def _range(path: tuple[str, ...], bounds: Any) -> Filter:
    names: tuple[Op, ...] = ("gt", "gte", "lt", "lte")
    given = {f"${name}": getattr(bounds, name) for name in names if getattr(bounds, name) is not None}
    # Qdrant wants one item of a list to be inside all bounds, the tree takes each bound by itself: the same for
    # anything but lists, for which the tree's meaning is documented.
    parsed = parse_filter({_quote(path): given})
    if parsed is None:
        raise FilterError("A range has no bounds.", hint=_HINT)
    return parsed
