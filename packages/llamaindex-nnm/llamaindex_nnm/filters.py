"""LlamaIndex's metadata filters in the engine's filter language. What cannot be said raises; nothing fails open.

===================================  ===================================================================================
operator                             meaning (where the value is a list, "holds" means: for any of its items)
===================================  ===================================================================================
``==``                               the value is equal; 1 is 1.0, true is not 1; None asks for an explicit null
``!=``                               not ``==``; also holds where the key is lacking
``> >= < <=``                        numbers with numbers, ISO 8601 dates with ISO 8601 dates; other text raises
``in``, ``any``                      one of the list's items is equal
``nin``                              not ``in``; also holds where the key is lacking
``all``                              each of the list's items is among the values
``contains``                         the value, or an item of the list of values, is equal (for parts of text use
                                     ``text_match``)
``text_match``                       the text has this substring; case counts
``text_match_insensitive``           the text has this substring; case does not count
``is_empty``                         the key is lacking, null or an empty list
``and``, ``or``, ``not``             all, at least one, none of the filters hold; they nest
===================================  ===================================================================================

A key is one key, dots included. ``doc_id``, ``document_id`` and ``ref_doc_id`` are the id of the source document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llamaindex_nnm.nodes import RESERVED, TURN
from nnm_core import FilterError

Filters = MetadataFilters | Mapping[str, Any] | None

_DIRECT = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.ANY: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$text",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "$itext",
}
_SOURCE_KEYS = ("doc_id", "document_id", "ref_doc_id")
NO_TURNS = {f"{RESERVED}.kind": {"$ne": TURN}}


def to_engine_filter(filters: Filters) -> dict[str, Any] | None:
    """The filter in the engine's dict form, which is also accepted and returned as it is; None asks for everything.

    Raises:
        FilterError: an unknown operator or condition, or a value that the operator cannot use.
    """
    if filters is None:
        return None
    if isinstance(filters, MetadataFilters):
        return _group(filters) if filters.filters else None
    return dict(filters) or None


def all_of(*parts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The filter that all `parts` hold; None parts are left out."""
    given = [dict(part) for part in parts if part]
    if len(given) < 2:
        return given[0] if given else None
    return {"$and": given}


def only_documents(ids: Sequence[str] | None) -> dict[str, Any] | None:
    """Nodes of these source documents; an empty list restricts nothing."""
    return {f"{RESERVED}.ref_doc_id": {"$in": list(ids)}} if ids else None


def only_nodes(ids: Sequence[str] | None) -> dict[str, Any] | None:
    """These nodes; an empty list restricts nothing."""
    return {f"{RESERVED}.id": {"$in": list(ids)}} if ids else None


def _group(filters: MetadataFilters) -> dict[str, Any]:
    if not filters.filters:
        raise FilterError("A nested group of filters is empty.", hint="Leave it out.")
    parts = [_group(part) if isinstance(part, MetadataFilters) else _one(part) for part in filters.filters]
    condition = filters.condition or FilterCondition.AND
    if condition == FilterCondition.AND:
        return {"$and": parts}
    if condition == FilterCondition.OR:
        return {"$or": parts}
    if condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    raise FilterError(f"Unknown filter condition {condition!r}.")


def _one(part: MetadataFilter) -> dict[str, Any]:
    key, operator, value = _path(part.key), part.operator, part.value
    if operator == FilterOperator.IS_EMPTY:
        return {key: {"$is_empty": True}}
    if operator == FilterOperator.ALL:
        if not isinstance(value, list) or not value:
            raise FilterError(f"'all' on {part.key!r} needs a list with items, not {value!r}.")
        return {"$and": [{key: {"$eq": item}} for item in value]}
    if operator not in _DIRECT:
        raise FilterError(f"Unknown filter operator {operator!r} on {part.key!r}.")
    return {key: {_DIRECT[operator]: value}}


def _path(key: str) -> str:
    if key in _SOURCE_KEYS:
        return f"{RESERVED}.ref_doc_id"
    if '"' in key:
        raise FilterError(f"The key {key!r} has a quotation mark; filters cannot name it.")
    return f'"{key}"'
