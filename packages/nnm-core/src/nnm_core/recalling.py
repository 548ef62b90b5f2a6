"""Recall in two stages: the index finds candidates, the model's own states re-rank them. Chosen without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnm_core.collection import Collection
from nnm_core.errors import InvalidInputError
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import PromptFormat
from nnm_core.recall.choose import choose_rerank
from nnm_core.recall.dialogue import Asking
from nnm_core.recall.fusion import FusedHit
from nnm_core.recall.rerank import RerankSettings, StateReranker
from nnm_core.records import Hit, Memory
from nnm_core.states.capture import capture, place
from nnm_core.states.state import PlacedState

# Documents that the choice of heads and weights looks at; the choice hardly changes with more.
_SAMPLE = 400
# Candidates that `search(rerank=True)` reads the query over when nothing else was chosen.
_DEPTH = 20
_SETTING = "rerank"


class Recall:
    """Searches one collection.

    Args:
        model: that made the states.
        format: how memories become tokens.
        collection: where they are.
        left: the canonical left context's state, made on demand.
    """

    def __init__(
        self, model: LoadedModel, format: PromptFormat, collection: Collection, left: Callable[[], PlacedState]
    ) -> None:
        self._model = model
        self._format = format
        self._collection = collection
        self._left = left

    def searching(
        self,
        query: str,
        k: int,
        filter: Any,
        *,
        vector: NDArray[np.float32] | None = None,
        alpha: float | None = None,
        rerank: bool = False,
    ) -> Asking[list[Hit]]:
        """The best `k` memories; with `rerank` the best of the first stage's candidates by what their states say.

        A candidate whose state is not there, or was computed behind another left context, keeps its place behind the
        re-ranked ones.
        """
        if not rerank:
            hits = yield from self._collection.searching(query, k, filter, vector=vector, alpha=alpha)
            return hits
        if not query.strip():
            raise InvalidInputError("Re-ranking reads the query; there is none.", hint="Pass the query's text too.")
        depth = max(k, self.settings.depth)
        hits = yield from self._collection.searching(query, depth, filter, vector=vector, alpha=alpha)
        fused = [FusedHit(str(place), hit.score, hit.parts) for place, hit in enumerate(hits)]
        states = {name.id: state for name, hit in zip(fused, hits, strict=True) if (state := self._placed(hit.memory))}
        ranked = self._reranker.rerank(query, fused, states)
        return [self._cited(hits[int(hit.id)].memory, hit) for hit in ranked[:k]]

    def _cited(self, memory: Memory, hit: FusedHit) -> Hit:
        """The hit with its span in characters of the text instead of tokens of the state."""
        parts = {name: value for name, value in hit.parts.items() if name not in ("span_start", "span_stop")}
        if "span_start" not in hit.parts:
            return Hit(memory, hit.score, parts)
        places = self._format.memory_places(memory.text)
        inside = places[int(hit.parts["span_start"]) : int(hit.parts["span_stop"])]
        span = (inside[0][0], inside[-1][1]) if inside else None
        return Hit(memory, hit.score, parts, span)

    @property
    def settings(self) -> RerankSettings:
        """What was chosen for this collection, or the defaults: query likelihood, without attention heads."""
        saved = self._collection.journal.get_setting(_SETTING)
        if saved is None:
            return RerankSettings(depth=_DEPTH)
        return RerankSettings(**{**saved, "heads": tuple((layer, head) for layer, head in saved["heads"])})

    def tune(self, count: int = 64) -> RerankSettings:
        """Choose retrieval heads and weights on `count` sentences of the collection's own documents; stored with it.

        Reads `count` documents without their sentence; all other states are stored ones.
        """
        memories = [entry.memory for entry in islice(self._entries(), _SAMPLE)]
        chosen, _ = choose_rerank(
            [memory.text for memory in memories],
            model=self._model,
            left=self._left(),
            states_of=lambda places: [self._placed(memories[i]) or self._read(memories[i].text) for i in places],
            read=self._read,
            sparse=self._collection.transforms.sparse,
            count=count,
            base=replace(self.settings, heads=(), weights=RerankSettings().weights),
        )
        self._collection.journal.set_setting(_SETTING, chosen.to_dict())
        self.__dict__.pop("_reranker", None)
        return chosen

    def _entries(self) -> Any:
        return (entry for batch in self._collection.journal.iter_live() for entry in batch)

    @cached_property
    def _reranker(self) -> StateReranker:
        return StateReranker(self._model, self._left(), self.settings)

    def _placed(self, memory: Memory) -> PlacedState | None:
        state = self._collection.find_state(memory)
        left = self._left()
        if state is None or state.left != left.name or state.origin.first_layer or state.kept is not None:
            return None
        return place(self._model, state, left.length)

    def _read(self, text: str) -> PlacedState:
        left = self._left()
        return place(self._model, capture(self._model, [self._format.memory_ids(text)], left)[0], left.length)


def describe(settings: RerankSettings) -> dict[str, Any]:
    """The settings for people and JSON."""
    heads: Sequence[str] = [f"{layer}.{head}" for layer, head in settings.heads]
    return {"weights": dict(settings.weights), "heads": list(heads), "depth": settings.depth}
