"""From the filter tree to the filter classes of an index.

qdrant-client and qdrant-edge have the same conditions in different classes, so the walk over the tree is written once
and a `Dialect` makes the classes. What a dialect cannot say exactly, it hands to `scan`, which looks at the stored
metadata and answers with point ids: slower, never wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from nnm_core.errors import FilterError
from nnm_core.storage.filters import EXACT_FLOAT, And, Compare, Filter, Not, Or, is_number

Scan = Callable[[Filter], Collection[str]]
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Dialect(Protocol):
    """Makes the conditions of one index. `path` is a JSON path below the payload's metadata."""

    def value(self, path: tuple[str, ...], value: str | int) -> Any:
        """The value, or an item of the list, is this string or integer."""

    def any_of(self, path: tuple[str, ...], values: Sequence[str]) -> Any:
        """The value, or an item of the list, is one of these strings."""

    def boolean(self, path: tuple[str, ...], value: bool) -> Any:
        """The value, or an item of the list, is this truth value (and not a number)."""

    def numbers(self, path: tuple[str, ...], **bounds: float) -> Any:
        """A number within gt, gte, lt, lte."""

    def dates(self, path: tuple[str, ...], **bounds: str) -> Any | None:
        """A date within gt, gte, lt, lte; None if this index cannot be trusted with it."""

    def substring(self, path: tuple[str, ...], part: str) -> Any | None:
        """Text that has this part; None if this index has no such condition."""

    def null(self, path: tuple[str, ...]) -> Any:
        """An explicit null, or a list with one."""

    def empty(self, path: tuple[str, ...]) -> Any:
        """Lacking, null or an empty list."""

    def points(self, ids: Collection[str]) -> Any:
        """These points."""

    def group(self, *, must: Sequence[Any] = (), should: Sequence[Any] = (), must_not: Sequence[Any] = ()) -> Any:
        """A filter of conditions."""


def translate(condition: Filter, dialect: Dialect, scan: Scan) -> Any:
    """A filter object of the dialect's index that means the same as `condition`.

    Raises:
        FilterError: the tree was built by hand and holds something unknown.
    """
    return dialect.group(must=[_translate(condition, dialect, scan)])


def _translate(node: Filter, dialect: Dialect, scan: Scan) -> Any:
    if isinstance(node, And):
        return dialect.group(must=[_translate(part, dialect, scan) for part in _parts(node)])
    if isinstance(node, Or):
        return dialect.group(should=[_translate(part, dialect, scan) for part in _parts(node)])
    if isinstance(node, Not):
        return dialect.group(must_not=[_translate(node.part, dialect, scan)])
    if any('"' in part or "\\" in part for part in node.path):
        return dialect.points(scan(node))  # JSON paths have no way to write these
    return _compare(node, dialect, scan)


def _parts(node: And | Or) -> tuple[Filter, ...]:
    # Qdrant reads an empty list of conditions as no condition: that would fail open.
    if not node.parts:
        raise FilterError("An and/or without parts says nothing.")
    return node.parts


def _compare(node: Compare, dialect: Dialect, scan: Scan) -> Any:
    path, op, value = node.path, node.op, node.value
    if op == "eq":
        return _equal(path, value, dialect)
    if op == "in":
        return _within(path, value, dialect)
    if op == "text":
        return dialect.substring(path, value) or dialect.points(scan(node))
    if op == "itext":
        return dialect.points(scan(node))  # no index folds case as Unicode asks
    if op == "is_empty":
        return dialect.empty(path)
    if op == "exists":
        return dialect.group(should=[dialect.group(must_not=[dialect.empty(path)]), dialect.null(path)])
    if op in ("gt", "gte", "lt", "lte"):
        if isinstance(value, str):
            return dialect.dates(path, **{op: value}) or dialect.points(scan(node))
        return dialect.numbers(path, **{op: float(value)})
    raise FilterError(f"Unknown comparison {op!r}.")


def _equal(path: tuple[str, ...], value: Any, dialect: Dialect) -> Any:
    if value is None:
        return dialect.null(path)
    if isinstance(value, bool):
        return dialect.boolean(path, value)
    if isinstance(value, str) or (isinstance(value, int) and abs(value) >= EXACT_FLOAT):
        return dialect.value(path, value)
    if is_number(value):
        return dialect.numbers(path, gte=float(value), lte=float(value))  # so that 1 is 1.0
    raise FilterError(f"Cannot compare with {value!r}.")


def _within(path: tuple[str, ...], values: Sequence[Any], dialect: Dialect) -> Any:
    texts = [value for value in values if isinstance(value, str)]
    others = [_equal(path, value, dialect) for value in values if not isinstance(value, str)]
    if texts:
        others.append(dialect.any_of(path, texts))
    return dialect.group(should=others) if others else dialect.points([])


def json_path(path: Sequence[str]) -> str:
    """``metadata."a.b".c`` and the like."""
    return ".".join(["metadata", *(part if _BARE.fullmatch(part) else f'"{part}"' for part in path)])
