"""Filters as qdrant-client's models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from qdrant_client import models

from nnm_core.storage.filter_translation import json_path


class QdrantDialect:
    """`Dialect` of qdrant-client."""

    def value(self, path: tuple[str, ...], value: str | int) -> Any:
        """See `Dialect`."""
        return models.FieldCondition(key=json_path(path), match=models.MatchValue(value=value))

    def any_of(self, path: tuple[str, ...], values: Sequence[str]) -> Any:
        """See `Dialect`."""
        return models.FieldCondition(key=json_path(path), match=models.MatchAny(any=list(values)))

    def boolean(self, path: tuple[str, ...], value: bool) -> Any:
        """See `Dialect`."""
        return models.FieldCondition(key=json_path(path), match=models.MatchValue(value=value))

    def numbers(self, path: tuple[str, ...], **bounds: float) -> Any:
        """See `Dialect`."""
        return models.FieldCondition(key=json_path(path), range=models.Range(**bounds))

    def dates(self, path: tuple[str, ...], **bounds: str) -> Any | None:
        """See `Dialect`."""
        return models.FieldCondition(key=json_path(path), range=models.DatetimeRange.model_validate(bounds))

    def substring(self, path: tuple[str, ...], part: str) -> Any | None:
        """See `Dialect`."""
        kind = getattr(models, "MatchSubstring", None)  # younger than the oldest qdrant-client that we support
        return None if kind is None else models.FieldCondition(key=json_path(path), match=kind(substring=part))

    def null(self, path: tuple[str, ...]) -> Any:
        """See `Dialect`."""
        return models.IsNullCondition(is_null=models.PayloadField(key=json_path(path)))

    def empty(self, path: tuple[str, ...]) -> Any:
        """See `Dialect`."""
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=json_path(path)))

    def points(self, ids: Collection[str]) -> Any:
        """See `Dialect`."""
        return models.HasIdCondition(has_id=list(ids))

    def group(self, *, must: Sequence[Any] = (), should: Sequence[Any] = (), must_not: Sequence[Any] = ()) -> Any:
        """See `Dialect`."""
        return models.Filter(must=list(must) or None, should=list(should) or None, must_not=list(must_not) or None)
