"""Filters on metadata: a small typed tree, the parser of its dict form, and its meaning in plain Python.

`matches` is the truth; every index must agree with it (`filter_translation` brings the tree to them).
A filter never fails open: whatever is not understood raises `FilterError`.

========================  ==========================================================================================
``{"k": v}``              `k` is `v`; numbers by value (1 is 1.0, true is not 1), null is an explicit null
``{"k": [v, w]}``         short for ``{"k": {"$in": [v, w]}}``
``$eq $ne $in $nin``      as they say; ``$ne`` and ``$nin`` also match where `k` is lacking
``$gt $gte $lt $lte``     numbers (as 64-bit floats) with numbers, ISO 8601 dates with ISO 8601 dates (UTC if no zone)
``$contains``             the list `k` contains the value
``$text $itext``          `k` is text that has this substring; case counts, does not count
``$exists``               `k` is there; an empty list counts as lacking, as it does in the index
``$is_empty``             `k` is lacking, null or an empty list
``$and $or $not``         lists of filters, a filter
========================  ==========================================================================================

Where `k` is a list, a comparison holds if it holds for any of its items. Dots reach into mappings
(``"author.name"``); a key that has a dot itself is quoted (``'"a.b"'``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from nnm_core.errors import FilterError

Op = Literal["eq", "in", "gt", "gte", "lt", "lte", "text", "itext", "exists", "is_empty"]
Scalar = str | int | float | bool | None

# Beyond this, floats skip integers: such integers are compared as integers.
EXACT_FLOAT = 2**53
# What all indexes read alike: a zone needs seconds before it.
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?)?)?")
_HINT = "Operators are $eq $ne $gt $gte $lt $lte $in $nin $exists $contains $text $itext $is_empty, and $and $or $not."


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition on the metadata value at `path`."""

    path: tuple[str, ...]
    op: Op
    value: Any


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one part holds."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Filter


Filter = Compare | And | Or | Not

# -- parsing ----------------------------------------------------------------------------------------------------


def parse_filter(value: Any) -> Filter | None:
    """A filter from its dict form, from a `qdrant_client.models.Filter`, or from a tree (returned as it is).

    None and an empty mapping ask for everything and give None.

    Raises:
        FilterError: anything else, with a hint.
    """
    if value is None or isinstance(value, Compare | And | Or | Not):
        return value
    if isinstance(value, Mapping):
        return _parse_mapping(value) if value else None
    if type(value).__module__.startswith("qdrant_client."):
        from nnm_core.storage.filter_import import from_qdrant

        return from_qdrant(value)
    hint = 'For example {"year": {"$gte": 2020}}.'
    raise FilterError(f"A filter is a mapping, not {type(value).__name__}.", hint=hint)


def _parse_mapping(value: Any) -> Filter:
    if not isinstance(value, Mapping) or not value:
        raise FilterError(f"A part of a filter must be a non-empty mapping, not {value!r}.", hint=_HINT)
    return _all([_parse_item(key, item) for key, item in value.items()])


def _parse_item(key: Any, item: Any) -> Filter:
    if key in ("$and", "$or"):
        if not isinstance(item, Sequence) or isinstance(item, str | bytes) or not item:
            raise FilterError(f"{key} needs a non-empty list of filters, not {item!r}.")
        parts = tuple(_parse_mapping(part) for part in item)
        return And(parts) if key == "$and" else Or(parts)
    if key == "$not":
        return Not(_parse_mapping(item))
    if isinstance(key, str) and key.startswith("$"):
        raise FilterError(f"Unknown operator {key}.", hint=_HINT)
    path = parse_path(key)
    if isinstance(item, Mapping):
        if not item:
            raise FilterError(f"The condition on {key!r} is empty.", hint=_HINT)
        return _all([_operator(path, op, operand) for op, operand in item.items()])
    if isinstance(item, list | tuple | set | frozenset):
        return _operator(path, "$in", item)
    return _operator(path, "$eq", item)


def _all(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def parse_path(key: Any) -> tuple[str, ...]:
    """Split a key at its dots, quoted parts excepted.

    Raises:
        FilterError: not text, empty, or an empty part.
    """
    if not isinstance(key, str) or not key:
        raise FilterError(f"A filter's key must be a non-empty string, not {key!r}.")
    parts = re.findall(r'(?:^|(?<=\.))(?:"([^"]+)"|([^."][^.]*))(?=\.|$)', key)
    path = tuple(quoted or plain for quoted, plain in parts)
    length = sum(len(quoted) + 2 if quoted else len(plain) for quoted, plain in parts) + len(parts) - 1
    if not path or length != len(key):
        raise FilterError(f"{key!r} is not a key.", hint='Write a.b for nested keys and "a.b" in quotes for one key.')
    return path


def _operator(path: tuple[str, ...], op: Any, operand: Any) -> Filter:
    if op in ("$eq", "$contains"):
        return Compare(path, "eq", _scalar(op, operand))
    if op == "$ne":
        return Not(Compare(path, "eq", _scalar(op, operand)))
    if op in ("$in", "$nin"):
        if not isinstance(operand, list | tuple | set | frozenset):
            raise FilterError(f"{op} needs a list, not {operand!r}.")
        within = Compare(path, "in", tuple(_scalar(op, item) for item in operand))
        return within if op == "$in" else Not(within)
    if op in ("$gt", "$gte", "$lt", "$lte"):
        return Compare(path, op[1:], _bound(op, operand))
    if op in ("$text", "$itext"):
        if not isinstance(operand, str) or not operand:
            raise FilterError(f"{op} needs a non-empty string, not {operand!r}.")
        return Compare(path, op[1:], _scalar(op, operand))
    if op in ("$exists", "$is_empty"):
        if not isinstance(operand, bool):
            raise FilterError(f"{op} needs true or false, not {operand!r}.")
        test = Compare(path, op[1:], True)
        return test if operand else Not(test)
    raise FilterError(f"Unknown operator {op!r} on {'.'.join(path)!r}.", hint=_HINT)


def _scalar(op: str, value: Any) -> Scalar:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FilterError(f"{op} cannot use text that is not valid Unicode.") from error
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and float("-inf") < value < float("inf"):
        return value
    raise FilterError(
        f"{op} cannot compare with {value!r}.", hint="Use text, true/false, None, finite floats or 64-bit integers."
    )


def _bound(op: str, value: Any) -> float | int | str:
    value = _scalar(op, value)
    if isinstance(value, str) and is_date(value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise FilterError(f"{op} cannot order {value!r}.", hint="Use a number or an ISO date such as 2026-01-31T12:00:00Z.")


# -- meaning ----------------------------------------------------------------------------------------------------

_MISSING = object()


def matches(condition: Filter | None, metadata: Mapping[str, Any]) -> bool:
    """Whether `metadata` passes the filter."""
    if condition is None:
        return True
    if isinstance(condition, And):
        return all(matches(part, metadata) for part in condition.parts)
    if isinstance(condition, Or):
        return any(matches(part, metadata) for part in condition.parts)
    if isinstance(condition, Not):
        return not matches(condition.part, metadata)
    value = _resolve(metadata, condition.path)
    empty = value is _MISSING or value is None or value == []
    if condition.op == "is_empty":
        return empty
    if condition.op == "exists":
        return not empty or value is None
    items = value if isinstance(value, list | tuple) else [value]
    return any(_holds(condition.op, item, condition.value) for item in items)


def _resolve(metadata: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = metadata
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _holds(op: Op, value: Any, operand: Any) -> bool:
    if op == "eq":
        return _equal(value, operand)
    if op == "in":
        return any(_equal(value, item) for item in operand)
    if op == "text":
        return isinstance(value, str) and operand in value
    if op == "itext":
        return isinstance(value, str) and operand.casefold() in value.casefold()
    return _ordered(op, value, operand)


def is_number(value: Any) -> bool:
    """An int or float that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(value: Any, operand: Scalar) -> bool:
    if is_number(operand):
        if not is_number(value):
            return False
        if isinstance(operand, int) and abs(operand) >= EXACT_FLOAT:
            return isinstance(value, int) and value == operand
        return float(value) == float(operand)  # type: ignore[arg-type]  # is_number has looked
    return type(value) is type(operand) and value == operand


def _ordered(op: Op, value: Any, operand: float | int | str) -> bool:
    if isinstance(operand, str):
        left, right = (_date(value) if isinstance(value, str) else None), _date(operand)
        return left is not None and right is not None and _compare(op, left, right)
    return is_number(value) and _compare(op, float(value), float(operand))


def _compare(op: Op, left: Any, right: Any) -> bool:
    results = {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}
    return bool(results[op])


def is_date(text: str) -> bool:
    """Whether this is text that the ordering operators take for a date."""
    return _date(text) is not None


def _date(text: str) -> datetime | None:
    """A moment in UTC; None if this is not a date that all indexes read alike."""
    if not _ISO.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
