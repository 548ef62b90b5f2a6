"""The retriever: the engine's own recall, whose hits may be injected into the prompts that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from llamaindex_nnm.engine_bound import EngineHandle, EngineOwner
from llamaindex_nnm.filters import NO_TURNS, Filters, all_of, to_engine_filter
from llamaindex_nnm.nodes import to_scored

if TYPE_CHECKING:
    from nnm_core import NNM


class NNMRetriever(EngineOwner, BaseRetriever):
    """Recalls memories for a query; each hit takes a lease, so an `NNMLLM` of the same engine and scope injects it.

    Args:
        nnm: the open engine.
        similarity_top_k: how many nodes at most.
        filters: LlamaIndex's `MetadataFilters`, or a filter in the engine's own dict form.
        scope: conversation or request that may inject what is found.
        include_turns: also recall turns that an `NNMMemory` has kept.
        **kwargs: of `BaseRetriever` (callback_manager, object_map, objects, verbose).
    """

    def __init__(
        self,
        nnm: NNM,
        similarity_top_k: int = 4,
        *,
        filters: Filters = None,
        scope: str = "",
        include_turns: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._engine = EngineHandle(nnm)
        self.similarity_top_k = similarity_top_k
        self.scope = scope
        self._filter = all_of(to_engine_filter(filters), None if include_turns else NO_TURNS)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        text = "\n".join(query_bundle.embedding_strs)
        hits = self.nnm.search(text, self.similarity_top_k, self._filter, scope=self.scope)
        return [to_scored(hit) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        text = "\n".join(query_bundle.embedding_strs)
        hits = await self.nnm.asearch(text, self.similarity_top_k, self._filter, scope=self.scope)
        return [to_scored(hit) for hit in hits]
